//! Segments that overlap and differ: which of the bytes the server reads is up to its TCP.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{packets::Checksum, raw_tcp::RawTcp};

use crate::{
    attacker::{Attacker, delay_acknowledgements, header, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const ALL: Reached = Reached::Exactly(PINGS as u64);
const SOME: Reached = Reached::AtMost(PINGS as u64);
/// Payload before the bytes in question, and how much of it comes late.
const PAYLOAD: usize = 1000;
const LATE: usize = 500;
/// Bytes of the frame that hides the pings' first ones.
const HIDDEN: usize = 94;

/// The end of a frame's payload, and behind it one long frame that holds what looks like pings.
fn pings_as_payload() -> Vec<u8> {
    let mut bytes = vec![0; PAYLOAD - LATE];
    bytes.extend(header((HIDDEN + 6 * PINGS) as u16));
    bytes.extend(vec![0; HIDDEN]);
    bytes.extend(pings(PINGS));
    bytes
}

/// All of that payload, and behind it a frame that ends where the other segment's pings begin.
fn short_frame() -> Vec<u8> {
    let mut bytes = vec![0; PAYLOAD];
    bytes.extend(header(HIDDEN as u16));
    bytes.extend(vec![0; HIDDEN]);
    bytes
}

/// The server holds the pings, and takes the header before them from the other segment.
fn harmless_first(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(PAYLOAD as u16))?;
    tcp.send(&tcp.segment(LATE as i64, pings_as_payload()))?;
    tcp.settle(Duration::from_millis(20))?;
    tcp.send(&tcp.segment(0, short_frame()))?;
    finish(tcp, &[short_frame(), pings(PINGS)].concat())
}

/// The short frame waits at the server behind a hole, its end cut off by nothing; then the long one.
fn harmless_second(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(PAYLOAD as u16))?;
    tcp.send(&tcp.segment(LATE as i64, &short_frame()[LATE..]))?;
    tcp.settle(Duration::from_millis(20))?;
    tcp.send(&tcp.segment(LATE as i64, pings_as_payload()))?;
    tcp.settle(Duration::from_millis(20))?;
    tcp.send(&tcp.segment(0, vec![0; LATE]))?;
    finish(tcp, &[short_frame(), pings(PINGS)].concat())
}

/// Send what was meant all the time, from the server's position, as long as it takes.
fn finish(mut tcp: RawTcp, meant: &[u8]) -> Result<Peers> {
    tcp.settle(Duration::from_millis(100))?;
    let done = usize::try_from(-tcp.unacknowledged()).unwrap_or(0).min(meant.len());
    tcp.advance(done);
    try_all(&mut tcp, &meant[done..])?;
    one(tcp)
}

/// The same lengths, other opcodes: binary frames that the server throws away, then pings.
fn header_byte_first_as_something_else(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(0, [0x82, 0x80, 1, 2, 3, 4].repeat(PINGS));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    tcp.settle(Duration::from_millis(50))?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// The first byte of each ping comes first as a pong's, which the server throws away; it holds the
/// rest, and waits for the byte.
fn first_byte_exchanged(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    for _ in 0..40 {
        let mut pong = tcp.segment(0, [0x8A]);
        pong.checksum = Checksum::Wrong;
        tcp.send(&pong)?;
        tcp.send(&tcp.segment(1, [0x80, 1, 2, 3, 4]))?;
        tcp.send(&tcp.segment(0, [0x89]))?;
        tcp.advance(6);
    }
    tcp.settle(Duration::from_millis(100))?;
    // What the server did not take goes again, as a whole.
    let left = tcp.unacknowledged().max(0) as usize;
    tcp.next = tcp.next.wrapping_sub(left as u32);
    persist_all(&mut tcp, &pings(40)[240 - left..])?;
    persist_all(&mut tcp, &pings(PINGS - 40))?;
    one(tcp)
}

/// The server has a header and has not acknowledged it yet when another one takes its place.
fn header_replaced_before_its_acknowledgement(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    delay_acknowledgements(&mut tcp)?;
    tcp.send(&tcp.segment(0, header(8)))?;
    let mut other = tcp.segment(0, header(60_000));
    tcp.advance(other.payload.len());
    tcp.send(&other)?;
    ensure!(tcp.unacknowledged() > 0, "the server has acknowledged it");
    other.checksum = Checksum::Wrong;
    tcp.send(&other)?;
    persist_all(&mut tcp, &[vec![0; 8], pings(PINGS)].concat())?;
    one(tcp)
}

/// A header that the server holds behind a hole comes again with another length, in the segment that
/// fills the hole.
fn length_exchanged_behind_a_hole(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(LATE as u16))?;
    // Payload but its first byte, then a header that claims all that follows.
    let mut held = vec![0; LATE - 1];
    held.extend(header((6 * PINGS) as u16));
    held.extend(pings(PINGS));
    tcp.send(&tcp.segment(1, held))?;
    tcp.settle(Duration::from_millis(20))?;
    let whole = [vec![0; LATE], header(0), pings(PINGS)].concat();
    tcp.send(&tcp.segment(0, &whole[..LATE + 8]))?;
    finish(tcp, &whole)
}

pub const ROWS: &[Row] = &[
    Row::new("harmless_first", SOME, harmless_first),
    Row::new("harmless_second", SOME, harmless_second),
    Row::new("header_byte_first_as_something_else", ALL, header_byte_first_as_something_else),
    Row::new("first_byte_exchanged", ALL, first_byte_exchanged),
    Row::new(
        "header_replaced_before_its_acknowledgement",
        ALL,
        header_replaced_before_its_acknowledgement,
    ),
    Row::new("length_exchanged_behind_a_hole", SOME, length_exchanged_behind_a_hole),
];
