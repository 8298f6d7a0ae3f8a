//! Pings behind a gap: they pass, and the server reads none of them before the guard has judged them.
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
/// Segments of an off-path attacker, and how far they are apart.
const GUESSES: u32 = 32_768;
const STEP: u32 = u32::MAX / GUESSES + 1;
/// Pings that an honest client sends.
const FEW: usize = 10;
/// Where the gap's filler, [`TEXT`], ends.
const BEHIND: i64 = TEXT.len() as i64;

/// More than the limit wait at the server for six bytes.
fn pings_behind_a_gap(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    for n in 0..5 {
        tcp.send(&tcp.segment(BEHIND + n * 120, pings(PINGS / 5)))?;
    }
    tcp.settle(Duration::from_millis(50))?;
    try_all(&mut tcp, &TEXT)?;
    one(tcp)
}

/// Harmless frames that the server throws away are kept; pings come in their place.
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

/// What fills the gap says that the pings behind it are payload; the server throws it away, and gets
/// the filler that was meant.
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

/// An attacker that knows addresses and ports, and nothing else, spreads segments over all places that there
/// are. What the guard keeps of them the server does not, and nothing could fill the gap before it.
fn an_off_path_attacker_guesses(attacker: &Attacker) -> Result<Peers> {
    let mut tcp = attacker.connect()?;
    for guess in 0..GUESSES {
        let mut packet = tcp.segment(0, pings(1));
        packet.seq = tcp.next.wrapping_add(fastrand::u32(..STEP) + guess * STEP);
        packet.ack = fastrand::u32(..);
        tcp.send(&packet)?;
    }
    tcp.settle(Duration::from_millis(50))?;
    // Further than any of them that could be kept.
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
    Row::new("harmless_behind_a_gap_then_pings", SOME, harmless_behind_a_gap_then_pings),
    Row::new("filler_exchanged", SOME, filler_exchanged),
];
