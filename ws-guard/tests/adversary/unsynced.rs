//! Streams in which frames cannot be located, and whose client hides them.
use std::time::Duration;

use anyhow::Result;
use ws_guard_common::flow::UNREAD;
use ws_guard_testkit::raw_tcp::{Opening, RawTcp};

use crate::{
    attacker::{Attacker, persist_all},
    handshake::{long_request, upgrade_in},
    row::{Peers, Reached, Row, one},
};

/// Length of a request's head, longer than any that is followed.
const LONG: usize = 70_000;
/// Payload at each segment's start, in bytes. Frames are not searched for past it.
const PAYLOAD: usize = 300;
/// Number of pings in a segment, and number of segments.
const PINGS: usize = 170;
const SEGMENTS: usize = 100;
const SOME: Reached = Reached::AtMost((PINGS * SEGMENTS) as u64);
/// Length of such a segment, in bytes.
const SEGMENT: u64 = (PAYLOAD + 6 * PINGS + 14) as u64;
/// Pings that pass: these bytes, the rest of a segment, and an earlier credit.
const PASSED: u64 = (UNREAD as u64 / SEGMENT + 2) * PINGS as u64;

/// Factor for a busy machine: its server is so late that it seems silent.
const LATE: u64 = 3;

/// Return the end of a payload, pings, and a header whose length is not minimal.
fn segment() -> Vec<u8> {
    let mut segment = vec![0; PAYLOAD];
    for _ in 0..PINGS {
        segment.extend([0x89, 0x80, 1, 2, 3, 4]);
    }
    segment.extend(header());
    segment
}

fn header() -> Vec<u8> {
    let mut header = vec![0x82, 0xFF];
    header.extend((PAYLOAD as u64).to_be_bytes());
    header.extend([0; 4]);
    header
}

/// Open a connection with an unread request, out of sync from its first frame on.
fn connect(attacker: &Attacker) -> Result<RawTcp> {
    let mut tcp = attacker.tcp(0, &Opening::default())?;
    upgrade_in(&mut tcp, &[&long_request(LONG)])?;
    persist_all(&mut tcp, &header())?;
    Ok(tcp)
}

/// Send everything once: segments dropped for the pace would only arrive later.
fn flood(tcp: &mut RawTcp) -> Result<()> {
    for _ in 0..SEGMENTS {
        tcp.push(&segment())?;
    }
    tcp.settle(Duration::from_millis(100))
}

/// A client without any room: no pong tells of its pings.
fn out_of_step_with_a_window_that_is_shut(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = connect(attacker)?;
    (tcp.window, tcp.acknowledges) = (0, false);
    flood(&mut tcp)?;
    tcp.window = 0xFFFF;
    tcp.acknowledges = true;
    tcp.acknowledge()?;
    tcp.settle(Duration::from_millis(300))?;
    one(tcp)
}

/// A client that has room, and acknowledges nothing.
fn out_of_step_without_acknowledgements(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = connect(attacker)?;
    tcp.acknowledges = false;
    flood(&mut tcp)?;
    tcp.acknowledges = true;
    tcp.acknowledge()?;
    tcp.settle(Duration::from_millis(300))?;
    one(tcp)
}

/// A client that reads everything, and sends faster than the server answers.
fn out_of_step_and_faster_than_its_pongs(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = connect(attacker)?;
    flood(&mut tcp)?;
    tcp.settle(Duration::from_millis(300))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new(
        "out_of_step_with_a_window_that_is_shut",
        SOME,
        out_of_step_with_a_window_that_is_shut,
    )
    .allowed(PASSED),
    Row::new("out_of_step_without_acknowledgements", SOME, out_of_step_without_acknowledgements)
        .allowed(PASSED),
    Row::new("out_of_step_and_faster_than_its_pongs", SOME, out_of_step_and_faster_than_its_pongs)
        .allowed(LATE * PASSED),
];
