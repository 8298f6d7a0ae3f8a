//! Segments out of order, and gaps that are filled late or never.
use std::time::Duration;

use anyhow::Result;
use ws_guard_testkit::{packets::Packet, raw_tcp::RawTcp};

use crate::{
    attacker::{Attacker, TEXT, header, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);
/// Outcome for pings over the limit behind a gap: its filler does not pass.
const SOME: Reached = Reached::AtMost(PINGS as u64);

/// Return the pings in five segments behind a text, each at its place.
fn segments(tcp: &RawTcp) -> Vec<Packet> {
    let stream = [&TEXT[..], &pings(PINGS)].concat();
    let parts = stream.chunks(stream.len().div_ceil(5)).scan(0, |at, part| {
        let offset = *at;
        *at += part.len() as i64;
        Some(tcp.segment(offset, part))
    });
    parts.collect()
}

/// Send the segments in this order, and then all of them in sequence, as TCP would.
fn in_order(attacker: &Attacker, order: &[usize], pause: Duration) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let segments = segments(&tcp);
    for n in order {
        tcp.send(&segments[*n])?;
        tcp.settle(pause)?;
    }
    try_all(&mut tcp, &[&TEXT[..], &pings(PINGS)].concat())?;
    one(tcp)
}

fn header_before_its_predecessor(attacker: &Attacker) -> Result<Peers> {
    in_order(attacker, &[1, 0], Duration::from_millis(1))
}

fn two_gaps_at_once(attacker: &Attacker) -> Result<Peers> {
    in_order(attacker, &[4, 2, 3, 1], Duration::from_millis(1))
}

fn predecessor_withheld(attacker: &Attacker) -> Result<Peers> {
    in_order(attacker, &[1, 2, 3, 4, 4, 3, 2, 1], Duration::from_millis(400))
}

/// Pings behind a gap, which wait at the server for one byte that does not pass.
fn gap_that_is_filled_late(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    tcp.send(&tcp.segment(1, pings(PINGS)))?;
    tcp.settle(Duration::from_secs(2))?;
    // A text of nine bytes of which only the first was missing, if its rest is the first ping's.
    try_all(&mut tcp, &[0x81])?;
    one(tcp)
}

/// A hole in a payload; header and pings behind it are walked all the same.
fn hole_in_a_payload(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(1000))?;
    let mut tail = vec![0; 500];
    tail.extend(pings(PINGS));
    tcp.send(&tcp.segment(500, tail))?;
    tcp.settle(Duration::from_secs(1))?;
    persist_all(&mut tcp, &[0; 500])?;
    persist_all(&mut tcp, &[vec![0; 500], pings(PINGS)].concat())?;
    one(tcp)
}

/// Nine holes in one frame, each segment payload only; pings; the holes in reverse.
fn nine_holes(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let payload = 1800;
    persist_all(&mut tcp, &header(payload))?;
    for n in 0..9 {
        tcp.send(&tcp.segment(200 * n + 100, [0; 100]))?;
    }
    tcp.send(&tcp.segment(payload.into(), pings(PINGS)))?;
    for n in (0..9).rev() {
        tcp.send(&tcp.segment(200 * n, [0; 100]))?;
        tcp.settle(Duration::from_millis(5))?;
    }
    persist_all(&mut tcp, &[vec![0; payload.into()], pings(PINGS)].concat())?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new("header_before_its_predecessor", SOME, header_before_its_predecessor),
    Row::new("two_gaps_at_once", SOME, two_gaps_at_once),
    Row::new("predecessor_withheld", SOME, predecessor_withheld),
    Row::new("gap_that_is_filled_late", Reached::AtMost(0), gap_that_is_filled_late),
    Row::new("hole_in_a_payload", ALL, hole_in_a_payload),
    Row::new("nine_holes", ALL, nine_holes),
];
