//! Segments that look like the end of the connection, but are not for the server.
use std::{thread, time::Duration};

use anyhow::Result;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::Family,
    packets::{Checksum, Packet, flag},
};

use crate::{
    attacker::{Attacker, TEXT, delay_acknowledgements, header, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const SOME: Reached = Reached::AtMost(PINGS as u64);
/// Time after which a connection that looks closed makes room for others.
const FORGOTTEN: Duration = Duration::from_millis(2500);
/// Time after which the server has acknowledged everything that it holds in order.
const SETTLED: Duration = Duration::from_millis(1500);
/// Number of other connections: more than the flow table has room for.
const OTHERS: usize = 1100;
const ALL: Reached = Reached::Exactly(PINGS as u64);

/// A RST that the server's TCP never sees.
fn rst_with_a_bad_checksum(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut rst = tcp.segment(0, []).flags(flag::RST);
    rst.checksum = Checksum::Wrong;
    tcp.send(&rst)?;
    tcp.settle(Duration::from_millis(30))?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A RST at the byte that the server acknowledged last:
/// it has received more since then (RFC 5961, 3.2).
fn rst_before_a_delayed_acknowledgement(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    delay_acknowledgements(&mut tcp)?;
    let before = tcp.segment(0, []).flags(flag::RST);
    tcp.push(&TEXT[..1])?;
    tcp.send(&before)?;
    tcp.settle(Duration::from_millis(60))?;
    persist_all(&mut tcp, &TEXT[1..])?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Bytes that the server acknowledges while the guard takes it for closed.
/// Long after that, others come in their place.
fn replaced_behind_a_forged_rst(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    delay_acknowledgements(&mut tcp)?;
    let mut other = tcp.segment(0, &header(60_000)[..TEXT.len()]);
    let rst = Packet { payload: Vec::new(), checksum: Checksum::Wrong, ..other.clone() };
    tcp.push(&TEXT)?;
    tcp.send(&rst.flags(flag::RST))?;
    tcp.settle(SETTLED)?;
    other = tcp.again(&other);
    tcp.send(&other)?;
    tcp.settle(Duration::from_millis(30))?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A FIN that the server's TCP never sees, with an acknowledgement of other bytes.
fn fin_with_a_bad_checksum(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut fin = tcp.segment(5, []).flags(flag::FIN | flag::ACK);
    fin.checksum = Checksum::Wrong;
    tcp.send(&fin)?;
    persist_all(&mut tcp, &TEXT)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A forged RST, and other connections that fill the table.
/// So the connection that looks closed is forgotten.
fn forgotten_after_a_forged_rst(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut rst = tcp.segment(0, []).flags(flag::RST);
    rst.checksum = Checksum::Wrong;
    tcp.send(&rst)?;
    tcp.settle(FORGOTTEN)?;
    let options = ConnectOptions {
        source: Some(attacker.family.client(attacker.highest())),
        reads: false,
        ..ConnectOptions::default()
    };
    let (client, server) = (&attacker.stage.pair.client, attacker.server()?);
    let others = (0..OTHERS).map(|_| Client::connect(client, server, options));
    // They stay until the pings are sent.
    let others = others.collect::<Result<Vec<Client>>>()?;
    try_all(&mut tcp, &pings(PINGS))?;
    tcp.settle(Duration::from_millis(100))?;
    drop(others);
    // Their places are free again for the rows that follow.
    tcp.settle(FORGOTTEN)?;
    thread::sleep(FORGOTTEN);
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("rst_with_a_bad_checksum", ALL, rst_with_a_bad_checksum),
    Row::new("rst_before_a_delayed_acknowledgement", ALL, rst_before_a_delayed_acknowledgement),
    Row::new("replaced_behind_a_forged_rst", ALL, replaced_behind_a_forged_rst),
    Row::new("forgotten_after_a_forged_rst", SOME, forgotten_after_a_forged_rst)
        .only(&[Family::V4]),
    Row::new("fin_with_a_bad_checksum", ALL, fin_with_a_bad_checksum),
];
