//! Who is charged: floods spread thinly, and pings in somebody else's name.
use anyhow::Result;
use ws_guard_testkit::{
    client::{Client, ConnectOptions, Cut},
    frame::Frame,
    servers::Library,
};

use crate::{
    attacker::Attacker,
    row::{Peer, Peers, Reached, Row},
    stage::LIMIT,
};

const CONNECTIONS: u64 = 100;
/// Honest clients take the lowest addresses of the client namespace; this attacker's are the highest.
const LAST: u8 = 249;

/// Connections of one address that send `early` pings behind the request and `late` ones after its
/// answer.
fn thin(attacker: &Attacker, early: usize, late: usize) -> Result<Peers> {
    let source = Some(attacker.family.client(LAST - attacker.n % 8));
    let options = ConnectOptions { source, ..ConnectOptions::default() };
    let client = &attacker.stage.pair.client;
    let mut peers: Peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let early = vec![Frame::ping(""); early];
        let mut one = Client::connect_early(client, attacker.server()?, options, &early)?;
        one.send(&vec![Frame::ping(""); late], &Cut::Every(6))?;
        peers.push(Box::new(Some(one)) as Box<dyn Peer>);
    }
    Ok(peers)
}

fn hundred_connections(attacker: &Attacker) -> Result<Peers> {
    thin(attacker, 0, 3)
}

fn hundred_connections_early(attacker: &Attacker) -> Result<Peers> {
    thin(attacker, 2, 0)
}

pub const ROWS: &[Row] = &[
    // A limit, and one more limit's worth for neighbours.
    Row::new("hundred_connections", Reached::All(3 * CONNECTIONS), hundred_connections)
        .allowed(2 * LIMIT),
    Row::new("hundred_connections_early", Reached::All(2 * CONNECTIONS), hundred_connections_early)
        .known("a share of early pings passes on each connection, and is charged only afterwards")
        .on(Library::Ws)
        .allowed(2 * LIMIT),
];
