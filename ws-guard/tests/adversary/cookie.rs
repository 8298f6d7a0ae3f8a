//! Connections that begin without a SYN, with the numbers of an ended one: a SYN cookie comes from those alone.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
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

/// Place of the second connection's bytes among those of the first.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// All of them are old ones.
    Old,
    /// They are in a frame that was announced.
    Ahead,
}

fn again(stage: &Stage, client: SocketAddr, resets: bool, place: Place) -> Result<u64> {
    let server = stage.server(Library::Python)?.at(client_family(client).server());
    let mut tcp = RawTcp::new(&stage.pair, client, server)?;
    tcp.open(&Opening { scale: true, ..Opening::default() }, &[])?;
    let (next, expected) = (tcp.next, tcp.expected());
    tcp.acknowledge()?;
    tcp.upgrade()?;
    let mut message = encode(&[Frame::text(&"x".repeat(LARGE))]);
    if matches!(place, Place::Ahead) {
        message[2..10].copy_from_slice(&(1u64 << 19).to_be_bytes());
    }
    ensure!(try_all(&mut tcp, &message)?, "the first connection stalls");
    end(&mut tcp, resets)?;
    match place {
        Place::Old => tcp.begin_again(next, expected)?,
        Place::Ahead => {
            let sent = tcp.next.wrapping_sub(next);
            tcp.begin_again(tcp.next, expected.wrapping_add(sent))?;
            // The guard is to hear the server's number, of its answer to a keep-alive probe.
            tcp.send(&tcp.segment(-1, []))?;
            tcp.settle(QUIET)?;
        }
    }
    if tcp.upgrade().is_err() {
        return Ok(0);
    }
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
    for (n, resets, family, place) in [
        (11, true, Family::V4, Place::Old),
        (12, false, Family::V4, Place::Old),
        (13, true, Family::V6, Place::Old),
        (14, true, Family::V4, Place::Ahead),
        (15, false, Family::V6, Place::Ahead),
    ] {
        let client = SocketAddr::new(raw_tcp::address(family, n), PORT);
        let taken = again(&stage, client, resets, place)?;
        let row = format!("{place:?}, RST: {resets}, {family:?}: {taken} bytes of pings");
        println!("{row}, {MOST} may");
        ensure!(taken < MOST, "{row}, {MOST} may");
    }
    stage.finish()
}
