//! Pings behind a gap: passed, but unread by the server before they are judged.
use std::time::Duration;

use anyhow::Result;
use ws_guard_testkit::{
    frame::{Frame, encode},
    packets::Checksum,
};

use crate::{
    attacker::{Attacker, TEXT, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const SOME: Reached = Reached::AtMost(PINGS as u64);
/// Number of segments of an off-path attacker, and the distance between them.
const GUESSES: u32 = 32_768;
const STEP: u32 = u32::MAX / GUESSES + 1;
/// Pings that an honest client sends.
const FEW: usize = 10;
/// Offset of the end of the gap's filler, [`TEXT`].
const BEHIND: i64 = TEXT.len() as i64;

/// More pings than the limit, which wait at the server for six bytes.
fn pings_behind_a_gap(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    for n in 0..5 {
        tcp.send(&tcp.segment(BEHIND + n * 120, pings(PINGS / 5)))?;
    }
    tcp.settle(Duration::from_millis(50))?;
    try_all(&mut tcp, &TEXT)?;
    one(tcp)
}

/// The same behind a second gap; the first one is filled.
fn pings_behind_the_second_gap(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    tcp.send(&tcp.segment(BEHIND, TEXT))?;
    for n in 0..5 {
        tcp.send(&tcp.segment(3 * BEHIND + n * 120, pings(PINGS / 5)))?;
    }
    tcp.settle(Duration::from_millis(50))?;
    persist_all(&mut tcp, &TEXT.repeat(2))?;
    try_all(&mut tcp, &TEXT)?;
    one(tcp)
}

/// Harmless frames behind a second gap, which the server discards, then pings; the gaps are filled.
fn harmless_behind_the_second_gap_then_pings(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    tcp.send(&tcp.segment(BEHIND, TEXT))?;
    let mut bait = tcp.segment(3 * BEHIND, TEXT.repeat(PINGS));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    tcp.send(&tcp.segment(3 * BEHIND, pings(PINGS)))?;
    tcp.settle(Duration::from_millis(50))?;
    persist_all(&mut tcp, &TEXT.repeat(2))?;
    try_all(&mut tcp, &TEXT)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// Harmless frames that the server discards and the guard keeps, then pings.
fn harmless_behind_a_gap_then_pings(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    let mut bait = tcp.segment(BEHIND, TEXT.repeat(PINGS));
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    tcp.send(&tcp.segment(BEHIND, pings(PINGS)))?;
    tcp.settle(Duration::from_millis(50))?;
    try_all(&mut tcp, &TEXT)?;
    persist_all(&mut tcp, &pings(PINGS))?;
    one(tcp)
}

/// A filler that makes payload of the pings behind the gap;
/// the server discards it, and gets the intended filler.
fn filler_exchanged(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    tcp.send(&tcp.segment(8, pings(PINGS)))?;
    let mut bait = tcp.segment(0, [0x82, 0xFE, 2, 0x58, 0, 0, 0, 0]);
    bait.checksum = Checksum::Wrong;
    tcp.send(&bait)?;
    tcp.settle(Duration::from_millis(50))?;
    try_all(&mut tcp, &[0x82, 0xFE, 0, 0, 0, 0, 0, 0])?;
    one(tcp)
}

/// An attacker that knows only addresses and ports.
/// It spreads segments over the whole sequence space. The guard keeps segments that the server does
/// not, and nothing could fill the gap before them.
fn an_off_path_attacker_guesses(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    for guess in 0..GUESSES {
        let mut packet = tcp.segment(0, pings(1));
        packet.seq = tcp.next.wrapping_add(fastrand::u32(..STEP) + guess * STEP);
        packet.ack = fastrand::u32(..);
        tcp.send(&packet)?;
    }
    tcp.settle(Duration::from_millis(50))?;
    // Further than any of the segments that could be kept.
    let text = Frame::text(&"x".repeat(1400));
    persist_all(&mut tcp, &encode(&vec![text; 3 * STEP as usize / 1400]))?;
    persist_all(&mut tcp, &pings(FEW))?;
    one(tcp)
}

pub const ROWS: &[Row] = &[
    Row::new(
        "an_off_path_attacker_guesses",
        Reached::Exactly(FEW as u64),
        an_off_path_attacker_guesses,
    ),
    Row::new("pings_behind_a_gap", Reached::AtMost(0), pings_behind_a_gap),
    Row::new("pings_behind_the_second_gap", Reached::AtMost(0), pings_behind_the_second_gap),
    Row::new("harmless_behind_a_gap_then_pings", SOME, harmless_behind_a_gap_then_pings),
    Row::new(
        "harmless_behind_the_second_gap_then_pings",
        SOME,
        harmless_behind_the_second_gap_then_pings,
    ),
    Row::new("filler_exchanged", SOME, filler_exchanged),
];
