//! Retransmission: a defused ping is defused again.
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    capture::{Capture, Captured},
    client::Cut,
    frame::{Frame, encode},
    netns::{Family, INTERFACE, PairOptions},
    raw::{Flags, Segment, Sender},
    servers::Library,
    statistics::tcp,
};

use crate::{
    stage::{PORT, Stage, WAIT},
    talk::{answered, pings, round_trip},
};

const LIMIT: u64 = 30;
/// Number of times that TCP and the test send the same bytes.
const COPIES: usize = 3;
/// First byte of a ping with FIN (RFC 6455, 5.2).
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Remove or restore the server's address:
/// without it, its TCP takes nothing, and the programs in front of it see everything.
fn take_address(stage: &Stage, family: Family, away: bool) -> Result<()> {
    let (verb, more) = if away { ("del", "") } else { ("add", "nodad") };
    let server = &stage.pair.server;
    match family {
        Family::V4 => server.ip(&format!("addr {verb} {}/16 dev {INTERFACE}", family.server())),
        Family::V6 => {
            server.ip(&format!("addr {verb} {}/48 dev {INTERFACE} {more}", family.server()))
        }
    }
}

/// Return the segments with payload from `from`.
fn data(capture: &mut Capture, from: SocketAddr) -> Vec<Captured> {
    let all = capture.take().into_iter();
    all.filter(|segment| segment.source == from && !segment.payload.is_empty()).collect()
}

/// Wait until TCP has sent the same first bytes [`COPIES`] times.
fn copies(capture: &mut Capture, from: SocketAddr) -> Result<Vec<Captured>> {
    let (mut seen, deadline) = (Vec::<Captured>::new(), Instant::now() + WAIT);
    loop {
        seen.extend(data(capture, from));
        let first = seen.first().map(|segment| segment.seq);
        if seen.iter().filter(|segment| Some(segment.seq) == first).count() >= COPIES {
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "TCP sent only {seen:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Check that a retransmitted ping is defused each time.
/// TCP sends it until it was seen [`COPIES`] times, then we send it up to each of `cuts`.
fn defused_again(stage: &Stage, family: Family, cuts: &[usize]) -> Result<()> {
    let mut client = stage.client(family, 0)?;
    client.send(&pings(0, LIMIT), &Cut::Whole)?;
    round_trip(&mut client, "within the limit")?;
    ensure!(client.drain(WAIT), "the server does not acknowledge");

    let mut capture = Capture::new(&stage.pair.server)?;
    take_address(stage, family, true)?;
    let frame = Frame::ping("over the limit");
    let bytes = encode(std::slice::from_ref(&frame));
    client.send(&[frame], &Cut::Whole)?;
    let seen = copies(&mut capture, client.local())?;
    ensure!(seen.iter().all(|s| s.payload[0] == PONG), "a copy was not defused: {seen:?}");
    ensure!(seen.iter().all(|s| s.payload[1..] == bytes[1..]), "other bytes changed: {seen:?}");

    // The same bytes, cut in another way.
    let first = seen.first().context("there are copies")?;
    let sender = Sender::new(&stage.pair)?;
    for end in cuts.iter().map(|end| bytes.len().min(*end)) {
        sender.send(&Segment {
            source: client.local(),
            destination: SocketAddr::new(family.server(), PORT),
            seq: first.seq,
            ack: first.ack,
            flags: Flags::Ack,
            payload: &bytes[..end],
        })?;
    }
    thread::sleep(Duration::from_millis(50));
    let again = data(&mut capture, client.local());
    ensure!(again.iter().all(|s| s.payload[0] == PONG), "a copy was not defused: {again:?}");
    let whole = again.iter().any(|s| s.payload.len() == bytes.len());
    ensure!(whole, "cut at {cuts:?}: dropped {}: {again:?}", stage.drops());

    take_address(stage, family, false)?;
    round_trip(&mut client, "it goes on")?;
    ensure!(answered(&client).into_iter().eq(0..LIMIT), "{:?}", answered(&client));
    let (flow, source) = (stage.flow(&client)?, stage.source(family, 0)?);
    // Counted once, despite retransmissions.
    ensure!((flow.pings_in, flow.defused) == (LIMIT + 1, 1), "{flow:?}");
    ensure!((source.pings_total, source.defused_total) == (LIMIT + 1, 1), "{source:?}");
    ensure!(flow.frames_in == client.sent().frames && flow.state == "open", "{flow:?}");
    client.close().map(drop)
}

fn every_copy_is_defused(cuts: &[usize]) -> Result<()> {
    for offloads in [false, true] {
        let options = PairOptions { offloads, ..PairOptions::default() };
        let words = "--attach xdp-native --window-seconds 60";
        let stage = Stage::new(Library::Python, options, words)?;
        for family in Family::BOTH {
            let defused = defused_again(&stage, family, cuts);
            defused.with_context(|| format!("{family:?}, offloads {offloads}"))?;
        }
        let errors = tcp(&stage.pair.server, "InErrs")?;
        ensure!(errors == 0, "InErrs: {errors}");
        let totals = stage.finish_one()?;
        ensure!((totals.pings, totals.pongs) == (2 * LIMIT, 2), "{totals:?}");
    }
    Ok(())
}

#[test]
fn a_retransmitted_ping_is_defused_again() -> Result<()> {
    needs_root!();
    every_copy_is_defused(&[usize::MAX])
}

#[test]
fn a_ping_retransmitted_in_parts_is_defused_again() -> Result<()> {
    needs_root!();
    every_copy_is_defused(&[1, 2, usize::MAX])
}

/// Bytes that passed pass again: a ping within the limit is answered, lost or not.
#[test]
fn a_retransmitted_ping_within_the_limit_stays_a_ping() -> Result<()> {
    needs_root!();
    let stage = Stage::new(
        Library::Python,
        PairOptions::default(),
        "--attach xdp-native --window-seconds 60",
    )?;
    for family in Family::BOTH {
        let mut client = stage.client(family, 0)?;
        round_trip(&mut client, "hello")?;
        ensure!(client.drain(WAIT), "the server does not acknowledge");
        let mut capture = Capture::new(&stage.pair.server)?;
        take_address(&stage, family, true)?;
        client.send(&pings(0, 1), &Cut::Whole)?;
        let seen = copies(&mut capture, client.local())?;
        ensure!(seen.iter().all(|s| s.payload[0] == PING), "{seen:?}");
        take_address(&stage, family, false)?;
        ensure!(client.wait(WAIT, |r| r.pongs == 1), "no pong");
        let source = stage.source(family, 0)?;
        ensure!((source.pings_total, source.defused_total) == (1, 0), "{source:?}");
    }
    stage.finish_one().map(drop)
}

/// A lost stream of one-byte segments gets through when it is retransmitted.
#[test]
fn lost_one_byte_segments_get_through() -> Result<()> {
    needs_root!();
    let stage = Stage::new(
        Library::Python,
        PairOptions::default(),
        "--attach xdp-native --window-seconds 60",
    )?;
    for family in Family::BOTH {
        let mut client = stage.client(family, 0)?;
        client.send(&pings(0, LIMIT), &Cut::Whole)?;
        round_trip(&mut client, "within the limit")?;
        ensure!(client.drain(WAIT), "the server does not acknowledge");
        take_address(&stage, family, true)?;
        // No more segments than TCP sends before the first acknowledgement.
        client.send(&[Frame::ping("")], &Cut::Every(1))?;
        client.send(&[Frame::text("behind it")], &Cut::Whole)?;
        thread::sleep(Duration::from_millis(300));
        take_address(&stage, family, false)?;
        let echoed = client.wait(2 * WAIT, |r| r.messages == 2);
        ensure!(echoed, "{family:?}: no echo; dropped {}", stage.drops());
        ensure!(answered(&client).into_iter().eq(0..LIMIT), "{:?}", answered(&client));
        let flow = stage.flow(&client)?;
        ensure!((flow.pings_in, flow.defused) == (LIMIT + 1, 1), "{flow:?}");
        ensure!(flow.frames_in == client.sent().frames, "{flow:?}");
    }
    stage.finish_one().map(drop)
}
