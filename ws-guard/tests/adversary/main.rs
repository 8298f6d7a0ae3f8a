//! Attacks, one named case a row, each against a real server behind the guard.
//!
//! The attacker has its own TCP ([`ws_guard_testkit::raw_tcp`]), and the server's kernel decides
//! which of its segments count. The outcome of a row is read from the server's log and from the
//! pongs in its stream, never from the guard: pings beyond the limit must be zero. An honest client
//! talks during each row, and all its frames must be counted exactly.
//!
//! A row that is known to fail says why; it fails when it unexpectedly passes. `WS_GUARD_ROW=NAME`
//! runs only the rows whose name contains `NAME`.

/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod attacker;
mod bait;
mod blame;
mod closing;
mod cookie;
mod earlier;
mod echo;
mod fast_open;
mod frame;
mod gaps;
mod handshake;
mod offload;
mod order;
mod overlap;
mod pace;
mod packet;
#[path = "../guard/process.rs"]
mod process;
mod row;
mod silence;
mod soak;
mod stage;
mod tunnel;
mod unsynced;
mod urgent;
mod window;

use anyhow::Result;
use ws_guard_testkit::netns::PairOptions;

use crate::{
    row::{ONE_ROW, Row, play},
    stage::Stage,
};

/// Rows that behave the same wherever the guard is attached.
const EVERYWHERE: [&[Row]; 14] = [
    bait::ROWS,
    closing::ROWS,
    echo::ROWS,
    silence::ROWS,
    unsynced::ROWS,
    urgent::ROWS,
    order::ROWS,
    overlap::ROWS,
    gaps::ROWS,
    frame::ROWS,
    handshake::ROWS,
    packet::ROWS,
    fast_open::ROWS,
    blame::ROWS,
];

/// Set up a stage with real checksums: offloads are off.
fn stage(attach: &str) -> Result<Stage> {
    let options = PairOptions { clients: 250, offloads: false, ..PairOptions::default() };
    Stage::new(attach, options)
}

/// Play one of two halves, which run at the same time.
/// A single row is in the first.
fn attacks_at_xdp(half: usize) -> Result<()> {
    let rows = [&EVERYWHERE.concat(), packet::AT_XDP].concat();
    let single = std::env::var_os(ONE_ROW).is_some();
    let middle = if single { rows.len() } else { rows.len() / 2 };
    let (first, second) = rows.split_at(middle);
    play(stage("xdp-native")?, [first, second][half])
}

// The names make these, the longest, begin before the others.

#[test]
fn attacks_at_xdp_first_half() -> Result<()> {
    needs_root!();
    attacks_at_xdp(0)
}

#[test]
fn attacks_at_xdp_second_half() -> Result<()> {
    needs_root!();
    attacks_at_xdp(1)
}

/// Packets that the two hooks see differently.
#[test]
fn packets_at_tc() -> Result<()> {
    needs_root!();
    play(stage("tcx")?, &[packet::ROWS, packet::AT_TC].concat())
}
