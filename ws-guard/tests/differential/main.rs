//! The same streams through the kernel programs, the tracker on the host and an oracle on what the
//! server reads: equal counts, or the flow says that it does not know.
mod batch;
mod budget;
mod connection;
mod kernel;

use std::time::{Duration, Instant};

use batch::Tally;
use kernel::Kernel;
use ws_guard_oracle::cases::batches;
use ws_guard_testkit::skip_reason;

/// Streams of an ordinary run.
const STREAMS: u64 = 1_000;
/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[test]
fn programs_tracker_and_oracle_agree() {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    let mut kernel = Kernel::load().unwrap_or_else(|error| panic!("{error:#}"));
    let (mut tally, start) = (Tally::default(), Instant::now());
    let mut told = start;
    batches(STREAMS, |rng| {
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            println!("{} streams in {:.0?}", tally.streams, start.elapsed());
        }
        let played = batch::play(rng, &mut kernel, &mut tally);
        played.unwrap_or_else(|error| panic!("{error:#}"))
    });
    println!("{tally:?} in {:.1?}", start.elapsed());
    assert!(tally.stalled * 20 <= tally.streams, "the host is too slow: {tally:?}");
}
