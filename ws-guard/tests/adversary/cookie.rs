//! Connections that begin without a SYN, with the numbers of an ended one: a SYN cookie comes from those alone.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    frame::{Frame, encode},
    netns::{Family, PairOptions},
    packets::flag,
    raw_tcp::{self, Opening, RawTcp},
    servers::Library,
};

use crate::{
    attacker::{pings, try_all},
    row::PORT,
    stage::{Open, Stage},
};

/// Length of a message on the first connection, behind which the bytes of the second one are old ones.
const LARGE: usize = 400 << 10;
/// Bytes of the second one's pings that may pass: those of a second at a source's pace, until their pongs tell.
const MOST: u64 = 2 * (16 << 10);
/// Time until both ends have noticed an end.
const QUIET: Duration = Duration::from_millis(100);

/// End the connection: by a RST, or by a FIN of each side.
fn end(tcp: &mut RawTcp, resets: bool) -> Result<()> {
    if resets {
        tcp.send(&tcp.segment(0, []).flags(flag::RST))?;
        return tcp.settle(QUIET);
    }
    tcp.send(&tcp.segment(0, []).flags(flag::FIN | flag::ACK))?;
    tcp.advance(1);
    ensure!(tcp.wait(Duration::from_secs(5), |tcp| tcp.ended)?, "no FIN of the server");
    tcp.acknowledge()?;
    tcp.settle(QUIET)
}

fn again(stage: &Stage, client: SocketAddr, resets: bool) -> Result<u64> {
    let server = stage.server(Library::Python)?.at(client_family(client).server());
    let mut tcp = RawTcp::new(&stage.pair, client, server)?;
    tcp.open(&Opening { scale: true, ..Opening::default() }, &[])?;
    let (next, expected) = (tcp.next, tcp.expected());
    tcp.acknowledge()?;
    tcp.upgrade()?;
    let message = encode(&[Frame::text(&"x".repeat(LARGE))]);
    ensure!(try_all(&mut tcp, &message)?, "the first connection stalls");
    end(&mut tcp, resets)?;
    tcp.begin_again(next, expected)?;
    tcp.upgrade().context("the cookie is not accepted")?;
    let before = tcp.acked();
    // More is not acknowledged: the guard drops it.
    try_all(&mut tcp, &pings(LARGE / 8))?;
    Ok(tcp.acked().wrapping_sub(before).into())
}

fn client_family(client: SocketAddr) -> Family {
    if client.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// The bytes of the second connection are old ones of the first.
#[test]
fn syn_cookie_again_after_the_end() -> Result<()> {
    needs_root!();
    let open = Open::new(PairOptions { clients: 8, offloads: false, ..PairOptions::default() })?;
    open.pair.server.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let stage = open.guard("xdp-native")?;
    for (n, resets, family) in
        [(11, true, Family::V4), (12, false, Family::V4), (13, true, Family::V6)]
    {
        let client = SocketAddr::new(raw_tcp::address(family, n), PORT);
        let taken = again(&stage, client, resets)?;
        println!("RST: {resets}, {family:?}: {taken} bytes of pings, {MOST} may");
        ensure!(taken < MOST, "RST: {resets}, {family:?}: {taken} bytes of pings, {MOST} may");
    }
    stage.finish()
}
