//! Attribution: floods spread thinly, and pings under another's address.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    packets::REQUEST,
    raw_tcp::{Opening, RawTcp},
    servers::Library,
};

use crate::{
    attacker::{Attacker, pings, try_all},
    row::{Peer, Peers, Reached, Row},
    stage::{LIMIT, SHARE},
};

const CONNECTIONS: u64 = 100;
/// Pings of a connection: more than its share.
const PINGS: usize = 8;

/// Connections of one address that send a few pings each.
fn hundred_connections(attacker: &Attacker) -> Result<Peers> {
    let source = Some(attacker.family.client(attacker.highest()));
    let options = ConnectOptions { source, ..ConnectOptions::default() };
    let client = &attacker.stage.pair.client;
    let mut peers: Peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut one = Client::connect(client, attacker.server()?, options)?;
        one.send(&vec![Frame::ping(""); PINGS], &Cut::Every(6))?;
        peers.push(Box::new(Some(one)) as Box<dyn Peer>);
    }
    Ok(peers)
}

fn hundred_connections_early(attacker: &Attacker) -> Result<Peers> {
    for n in 0..CONNECTIONS as u16 {
        let mut tcp = attacker.tcp(n, &Opening::default())?;
        tcp.push(&[REQUEST, &pings(2)].concat())?;
        tcp.settle(Duration::from_millis(10))?;
        ensure!(tcp.unacknowledged() > 0, "the server took a request with pings behind it");
    }
    Ok(Vec::new())
}

/// A client at a flooder's address, the first half of whose request is sent twice.
fn neighbour_whose_request_comes_twice(attacker: &Attacker) -> Result<Peers> {
    let mut flooder = attacker.connect_number(1)?;
    try_all(&mut flooder, &pings(60))?;
    let mut tcp = attacker.tcp(2, &Opening::default())?;
    let (begin, rest) = REQUEST.split_at(REQUEST.len() / 2);
    let segment = tcp.segment(0, begin);
    tcp.send(&segment)?;
    tcp.send(&segment)?;
    tcp.advance(begin.len());
    tcp.push(rest)?;
    tcp.answered().context("the neighbour")?;
    try_all(&mut tcp, &pings(2))?;
    Ok(vec![Box::new(flooder), Box::new(tcp)])
}

/// Pings in the SYN of a client that never answers: it could have any address.
fn spoofed_syn_with_pings(attacker: &Attacker) -> Result<Peers> {
    let stage = attacker.stage;
    let victim = attacker.local(0);
    let mut tcp = RawTcp::new(&stage.pair, victim, attacker.server()?)?;
    tcp.acknowledges = false;
    let refused = tcp.open(&Opening::default(), &[REQUEST, &pings(60)].concat());
    ensure!(refused.is_err(), "the SYN reached the server");
    let throttled: Vec<serde_json::Value> = stage.guard.ask("throttled")?;
    let name = victim.ip().to_string().replace("::1", "::");
    let is_victim = |source: &serde_json::Value| {
        source["source"].as_str().is_some_and(|source| source.trim_end_matches("/64") == name)
    };
    ensure!(!throttled.iter().any(is_victim), "{name} is throttled: {throttled:?}");
    Ok(Vec::new())
}

pub const ROWS: &[Row] = &[
    Row::new("spoofed_syn_with_pings", Reached::AtMost(60), spoofed_syn_with_pings).on(Library::Ws),
    Row::new(
        "neighbour_whose_request_comes_twice",
        Reached::All(62),
        neighbour_whose_request_comes_twice,
    )
    .allowed(LIMIT + SHARE),
    // One limit, and the shares of all connections.
    Row::new("hundred_connections", Reached::All(PINGS as u64 * CONNECTIONS), hundred_connections)
        .allowed(LIMIT + SHARE * CONNECTIONS),
    Row::new("hundred_connections_early", Reached::AtMost(0), hundred_connections_early)
        .on(Library::Ws)
        .allowed(2 * LIMIT),
];
