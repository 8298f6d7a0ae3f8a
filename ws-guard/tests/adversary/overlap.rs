//! Segments that overlap and differ: the server's TCP chooses what it reads.
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
/// Length of the payload before the disputed bytes, and of its late part.
const PAYLOAD: usize = 1000;
const LATE: usize = 500;
/// Length of the frame that hides the first bytes of the pings.
const HIDDEN: usize = 94;

/// Return the end of a payload, and one long frame with pings in its payload.
fn pings_as_payload() -> Vec<u8> {
    let mut bytes = vec![0; PAYLOAD - LATE];
    bytes.extend(header((HIDDEN + 6 * PINGS) as u16));
    bytes.extend(vec![0; HIDDEN]);
    bytes.extend(pings(PINGS));
    bytes
}

/// Return all of that payload, and a frame that ends where the pings begin.
fn short_frame() -> Vec<u8> {
    let mut bytes = vec![0; PAYLOAD];
    bytes.extend(header(HIDDEN as u16));
    bytes.extend(vec![0; HIDDEN]);
    bytes
}

/// Pings that the server holds, behind a header from the other segment.
fn harmless_first(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(PAYLOAD as u16))?;
    tcp.send(&tcp.segment(LATE as i64, pings_as_payload()))?;
    tcp.settle(Duration::from_millis(20))?;
    tcp.send(&tcp.segment(0, short_frame()))?;
    finish(tcp, &[short_frame(), pings(PINGS)].concat())
}

/// The short frame behind a hole, nothing cut off its end; then the long one.
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

/// Send the intended bytes from the server's position, for as long as it takes.
fn finish(mut tcp: RawTcp, meant: &[u8]) -> Result<Peers> {
    tcp.settle(Duration::from_millis(100))?;
    let done = usize::try_from(-tcp.unacknowledged()).unwrap_or(0).min(meant.len());
    tcp.advance(done);
    try_all(&mut tcp, &meant[done..])?;
    one(tcp)
}

/// The same lengths in discarded binary frames, then pings.
fn header_byte_first_as_something_else(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(0, [0x82, 0x80, 1, 2, 3, 4].repeat(PINGS));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    tcp.settle(Duration::from_millis(50))?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A pong's first byte in place of each ping's, which the server discards;
/// it holds the rest, and waits for the byte.
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
    // Bytes that the server did not take are sent again, as a whole.
    let left = tcp.unacknowledged().max(0) as usize;
    tcp.next = tcp.next.wrapping_sub(left as u32);
    persist_all(&mut tcp, &pings(40)[240 - left..])?;
    persist_all(&mut tcp, &pings(PINGS - 40))?;
    one(tcp)
}

/// A header replaced before the server has acknowledged it.
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

/// A held header, sent again with another length.
/// It is in the segment that fills the hole before it.
fn length_exchanged_behind_a_hole(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    persist_all(&mut tcp, &header(LATE as u16))?;
    // Payload without its first byte, then a header that claims all that follows.
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
