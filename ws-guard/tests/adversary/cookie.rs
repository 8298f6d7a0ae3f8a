//! Connections that begin without a SYN, with the numbers of an ended one: a SYN cookie comes from those alone.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    frame::{Frame, encode, opcode},
    netns::{Family, PairOptions},
    packets::{Checksum, REQUEST, flag},
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
/// Length of an announced frame.
const ANNOUNCED: u64 = 1 << 19;
/// Bytes of the second one's pings that may pass: those of a second at a source's pace, until their pongs tell.
const MOST: u64 = 2 * (16 << 10);
/// Time within which the second connection's request is answered, if there is one.
const ANSWER: Duration = Duration::from_secs(2);
/// Time until both ends have noticed an end.
const QUIET: Duration = Duration::from_millis(100);

/// End of the first connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A RST.
    Reset,
    /// A FIN of each side, the client's first.
    Fins,
    /// The server's FIN, and a RST with data that begins in front of its next byte and reaches that.
    Overlapping,
}

fn end(tcp: &mut RawTcp, how: End) -> Result<()> {
    if how == End::Reset {
        tcp.send(&tcp.segment(0, []).flags(flag::RST))?;
        return tcp.settle(QUIET);
    }
    if how == End::Fins {
        tcp.send(&tcp.segment(0, []).flags(flag::FIN | flag::ACK))?;
        tcp.advance(1);
    } else {
        tcp.push(&encode(&[Frame::new(opcode::CLOSE, 1000u16.to_be_bytes())]))?;
    }
    ensure!(tcp.wait(Duration::from_secs(5), |tcp| tcp.ended)?, "no FIN of the server");
    tcp.acknowledge()?;
    tcp.settle(QUIET)?;
    if how == End::Overlapping {
        announce(tcp)?;
        tcp.send(&tcp.segment(-2, [0; 3]).flags(flag::RST))?;
    }
    tcp.settle(QUIET)
}

/// Announce a long frame to the guard, not to the server.
fn announce(tcp: &RawTcp) -> Result<()> {
    let header = [&[0x82, 0xFF][..], &ANNOUNCED.to_be_bytes(), &[0; 4]].concat();
    let mut segment = tcp.segment(0, header);
    segment.checksum = Checksum::Wrong;
    tcp.send(&segment)
}

/// Place of the second connection's bytes among those of the first.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// All of them are old ones.
    Old,
    /// They are in a frame that was announced.
    Ahead,
}

fn again(stage: &Stage, client: SocketAddr, how: End, place: Place) -> Result<u64> {
    // Python's only ends its side, and waits for the client's.
    let library = if how == End::Overlapping { Library::Gorilla } else { Library::Python };
    let server = stage.server(library)?.at(client_family(client).server());
    let mut tcp = RawTcp::new(&stage.pair, client, server)?;
    tcp.open(&Opening { scale: true, ..Opening::default() }, &[])?;
    let (next, expected) = (tcp.next, tcp.expected());
    tcp.acknowledge()?;
    tcp.upgrade()?;
    let mut message = encode(&[Frame::text(&"x".repeat(LARGE))]);
    if matches!(place, Place::Ahead) && how != End::Overlapping {
        message[2..10].copy_from_slice(&ANNOUNCED.to_be_bytes());
    }
    ensure!(try_all(&mut tcp, &message)?, "the first connection stalls");
    end(&mut tcp, how)?;
    match place {
        Place::Old => tcp.begin_again(next, expected)?,
        Place::Ahead => {
            if how == End::Overlapping {
                // Behind the header that the server does not have.
                tcp.advance(14);
            }
            let sent = tcp.next.wrapping_sub(next);
            tcp.begin_again(tcp.next, expected.wrapping_add(sent))?;
            // The guard is to hear the server's number, of its answer to a keep-alive probe.
            tcp.send(&tcp.segment(-1, []))?;
            tcp.settle(QUIET)?;
        }
    }
    tcp.push(REQUEST)?;
    if !tcp.wait(ANSWER, |tcp| tcp.upgraded)? {
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
    for (n, how, family, place) in [
        (11, End::Reset, Family::V4, Place::Old),
        (12, End::Fins, Family::V4, Place::Old),
        (13, End::Reset, Family::V6, Place::Old),
        (14, End::Reset, Family::V4, Place::Ahead),
        (15, End::Fins, Family::V6, Place::Ahead),
        (16, End::Overlapping, Family::V4, Place::Ahead),
    ] {
        let client = SocketAddr::new(raw_tcp::address(family, n), PORT);
        let taken = again(&stage, client, how, place)?;
        let row = format!("{place:?}, {how:?}, {family:?}: {taken} bytes of pings");
        println!("{row}, {MOST} may");
        ensure!(taken < MOST, "{row}, {MOST} may");
    }
    stage.finish()
}
