//! Pings behind a gap: they pass, and the server reads none of them before the guard has judged them.
use std::time::Duration;

use anyhow::Result;
use ws_guard_testkit::packets::Checksum;

use crate::{
    attacker::{Attacker, TEXT, persist_all, pings, try_all},
    row::{Peers, Reached, Row, one},
};

const PINGS: usize = 100;
const SOME: Reached = Reached::AtMost(PINGS as u64);
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

pub const ROWS: &[Row] = &[
    Row::new("pings_behind_a_gap", Reached::AtMost(0), pings_behind_a_gap),
    Row::new("harmless_behind_a_gap_then_pings", SOME, harmless_behind_a_gap_then_pings),
    Row::new("filler_exchanged", SOME, filler_exchanged),
];
