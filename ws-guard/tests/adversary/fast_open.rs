//! TCP Fast Open (RFC 7413): data in the SYN, and service before establishment.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    packets::REQUEST,
    raw_tcp::{Opening, RawTcp},
};

use crate::{
    attacker::{Attacker, TEXT, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::All(PINGS as u64);
const SOME: Reached = Reached::AtMost(PINGS as u64);

/// Open a connection whose SYN held `data`, which the server has taken.
fn opened(attacker: &Attacker, data: &[u8]) -> Result<RawTcp> {
    let pair = &attacker.stage.pair;
    let mut tcp = RawTcp::new(pair, attacker.local(0), attacker.server()?)?;
    tcp.open(&Opening::default(), data)?;
    ensure!(tcp.unacknowledged() == 0, "the server did not take the data in the SYN");
    Ok(tcp)
}

fn request_in_the_syn(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = opened(attacker, REQUEST)?;
    tcp.acknowledge()?;
    tcp.answered()?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

fn request_and_pings_in_the_syn(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = RawTcp::new(&attacker.stage.pair, attacker.local(0), attacker.server()?)?;
    let refused = tcp.open(&Opening::default(), &[REQUEST, &pings(PINGS)].concat());
    ensure!(refused.is_err(), "the SYN reached the server");
    Ok(Vec::new())
}

/// A SYN-ACK repeated on an upgraded connection:
/// the server answers the request, and the client stays silent.
fn syn_ack_behind_the_answer(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = opened(attacker, REQUEST)?;
    tcp.acknowledges = false;
    tcp.settle(Duration::from_millis(1500))?;
    tcp.acknowledges = true;
    tcp.acknowledge()?;
    tcp.answered()?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A RST in answer to a segment with a wrong ACK, before the handshake's last ACK:
/// the connection goes on.
fn rst_that_ends_nothing(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = opened(attacker, REQUEST)?;
    tcp.acknowledges = false;
    tcp.settle(Duration::from_millis(50))?;
    let mut wrong = tcp.segment(0, []);
    wrong.ack = wrong.ack.wrapping_add(100_000);
    tcp.send(&wrong)?;
    tcp.settle(Duration::from_millis(50))?;
    ensure!(tcp.reset, "the server did not answer with a RST");
    tcp.survives_reset();
    tcp.acknowledges = true;
    tcp.acknowledge()?;
    tcp.answered()?;
    persist_all(&mut tcp, &TEXT)?;
    try_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("request_in_the_syn", ALL, request_in_the_syn),
    Row::new("request_and_pings_in_the_syn", SOME, request_and_pings_in_the_syn),
    Row::new("syn_ack_behind_the_answer", SOME, syn_ack_behind_the_answer),
    Row::new("rst_that_ends_nothing", SOME, rst_that_ends_nothing),
];
