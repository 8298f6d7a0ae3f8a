//! The limit: it holds in any window, and a throttle ends by itself.
use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    client::{Client, Cut},
    netns::{Family, PairOptions},
    servers::Library,
};

use crate::{
    stage::{Stage, eventually},
    talk::{answered, pings, round_trip},
};

/// Default limit: pings in any window.
const LIMIT: u64 = 30;
const WINDOW: Duration = Duration::from_secs(10);
/// Window of tests that need many.
const SHORT: Duration = Duration::from_secs(2);
/// Margin for the kernel's coarse clock and the path.
const MARGIN: Duration = Duration::from_millis(100);

/// Send pings, and wait until all expected answers have come.
fn ping(client: &mut Client, first: u64, count: u64) -> Result<()> {
    client.send(&pings(first, count), &Cut::Whole)?;
    round_trip(client, "after the pings")
}

/// Check which pings were answered.
fn ensure_answered(client: &Client, wanted: impl Iterator<Item = u64>) -> Result<()> {
    let (answered, wanted) = (answered(client), wanted.collect::<Vec<u64>>());
    ensure!(answered == wanted, "answered {answered:?}, not {wanted:?}");
    Ok(())
}

#[test]
fn thirty_pings_in_ten_seconds_pass_and_the_next_does_not() -> Result<()> {
    needs_root!();
    // Python answers each ping separately.
    let stage = Stage::new(Library::Python, PairOptions::default(), "")?;
    for family in Family::BOTH {
        let mut client = stage.client(family, 0)?;
        ping(&mut client, 0, LIMIT)?;
        ensure!(!stage.is_throttled(family, 0)?, "{LIMIT} pings are within the limit");
        if family == Family::V4 {
            thread::sleep(WINDOW + MARGIN);
            ping(&mut client, LIMIT, LIMIT)?;
            ensure!(!stage.is_throttled(family, 0)?, "again {LIMIT} pings, a window later");
        }
        let allowed = client.sent().pings;
        ping(&mut client, allowed, 1)?;
        ensure!(stage.is_throttled(family, 0)?, "one more is over the limit");
        ensure!(stage.source(family, 0)?.defused_total == 1);
        ensure_answered(&client, 0..allowed)?;
    }
    // After a quiet window the source is free.
    thread::sleep(WINDOW + MARGIN);
    for family in Family::BOTH {
        let source = stage.source(family, 0)?;
        ensure!(source.state == "ok" && source.defused_total == 1, "{source:?}");
        let mut client = stage.client(family, 0)?;
        ping(&mut client, 0, LIMIT)?;
        ensure_answered(&client, 0..LIMIT)?;
    }
    ensure!(stage.throttled()?.is_empty());
    stage.finish_one().map(drop)
}

#[test]
fn the_window_slides() -> Result<()> {
    needs_root!();
    let stage = Stage::new(
        Library::Python,
        PairOptions::default(),
        &format!("--window-seconds {}", SHORT.as_secs()),
    )?;
    let mut client = stage.client(Family::V4, 0)?;
    let half = LIMIT / 2;
    ping(&mut client, 0, half)?;
    thread::sleep(SHORT * 3 / 4);
    ping(&mut client, half, half)?;
    // The first half has left the window, the second has not.
    thread::sleep(SHORT * 3 / 8);
    ping(&mut client, LIMIT, half)?;
    ensure!(!stage.is_throttled(Family::V4, 0)?, "{LIMIT} pings in the last {SHORT:?}");
    // A fixed window would have been renewed by now.
    ping(&mut client, LIMIT + half, 1)?;
    ensure!(stage.is_throttled(Family::V4, 0)?, "{} pings in the last {SHORT:?}", LIMIT + 1);
    ensure_answered(&client, 0..LIMIT + half)?;
    stage.finish_one().map(drop)
}

/// A source that goes on pinging stays throttled.
/// One that stops is free one window later.
#[test]
fn only_a_quiet_window_ends_a_throttling() -> Result<()> {
    needs_root!();
    let words = format!("--window-seconds {} --connection-share 0", SHORT.as_secs());
    let stage = Stage::new(Library::Ws, PairOptions::default(), &words)?;
    let mut client = stage.client(Family::V6, 0)?;
    let mut sent = 0;
    for _ in 0..6 {
        ping(&mut client, sent, LIMIT + 1)?;
        sent += LIMIT + 1;
        ensure!(stage.is_throttled(Family::V6, 0)?, "after {sent} pings");
        thread::sleep(SHORT / 2);
    }
    ensure_answered(&client, 0..LIMIT)?;
    thread::sleep(SHORT);
    eventually("the source is released", || Ok(!stage.is_throttled(Family::V6, 0)?))?;
    ping(&mut client, sent, LIMIT)?;
    ensure!(!stage.is_throttled(Family::V6, 0)?);
    ensure_answered(&client, (0..LIMIT).chain(sent..sent + LIMIT))?;
    let source = stage.source(Family::V6, 0)?;
    ensure!(source.defused_total == sent - LIMIT, "{source:?}");
    stage.finish_one().map(drop)
}
