//! Identical streams through programs, tracker, oracle and inspector.
//! The kernel programs, the tracker on the host, the oracle on the server's reads and the inspector
//! on captures have equal counts, or the flow says that it does not know.
mod batch;
mod budget;
mod captured;
#[path = "../../../ws-guard-inspect/tests/common/mod.rs"]
mod common;
mod connection;
mod kernel;
#[path = "../guard/process.rs"]
mod process;
mod wire;

use std::time::{Duration, Instant};

use anyhow::Result;
use batch::Tally;
use kernel::Kernel;
use ws_guard_oracle::cases::{batches, wanted};
use ws_guard_testkit::skip_reason;

/// Streams of an ordinary run.
const STREAMS: u64 = 1_000;
/// Streams on the wire, in an ordinary run...
const ON_WIRE: u64 = 48;
/// ...and at most: each takes real time, and an address of its own.
const MOST_ON_WIRE: u64 = 240;
/// Honest streams per permitted retransmission from a boundary that is defused whole.
/// That is the known limit.
const DEFUSED_AGAIN: u64 = 10_000;
/// Interval between progress reports of a long run.
const PROGRESS: Duration = Duration::from_secs(10);

#[test]
fn programs_tracker_oracle_and_inspector_agree() {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    let mut kernel = Kernel::load().unwrap_or_else(|error| panic!("{error:#}"));
    let (mut tally, start) = (Tally::default(), Instant::now());
    let mut told = start;
    batches(wanted(STREAMS), |rng| {
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            println!("{} streams in {:.0?}", tally.streams, start.elapsed());
        }
        let played = batch::play(rng, &mut kernel, &mut tally);
        played.unwrap_or_else(|error| panic!("{error:#}"))
    });
    println!("{tally:?} in {:.1?}", start.elapsed());
    assert!(tally.stalled * 20 <= tally.streams, "the host is too slow: {tally:?}");
    let most = tally.honest / DEFUSED_AGAIN + 2;
    assert!(tally.defused_again <= most, "the known limit shows more often: {tally:?}");
}

/// The generator's streams on a real path to a real server, which logs its reads.
#[test]
fn a_real_server_reads_what_the_guard_and_the_oracle_count() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return Ok(());
    }
    let mut wire = wire::Wire::new()?;
    let (mut tally, start) = (wire::Tally::default(), Instant::now());
    batches(wanted(ON_WIRE).min(MOST_ON_WIRE), |rng| {
        let played = wire.play(rng, &mut tally);
        played.unwrap_or_else(|error| panic!("{error:#}"))
    });
    println!("{tally:?} in {:.1?}", start.elapsed());
    assert!(tally.arrived * 5 >= tally.streams * 4, "too few arrive: {tally:?}");
    let fewer = tally.late + tally.again;
    assert!(fewer <= tally.streams / 20 + 2, "too few pings pass: {tally:?}");
    wire.finish()
}
