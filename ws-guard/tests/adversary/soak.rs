//! Everything at once, for a long time:
//! honest clients of all servers, floods, spoofed packets, the rows' attacks one after the other,
//! short connections, midstream pickups, daemons that are killed at the beginning. Honest frames
//! are counted exactly, all others limited; the daemon's memory stays constant, tables and logs
//! stay within bounds.
mod hostile;
mod peaceful;
mod watch;

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use ws_guard_testkit::{netns::PairOptions, raw::SPOOFED};

use crate::stage::{Open, Stage};

/// Duration of the long run in seconds, unless the environment says otherwise.
const LONG: u64 = 1200;
const SECONDS: &str = "WS_GUARD_SOAK_SECONDS";
const SHORT: Duration = Duration::from_secs(30);
/// The window is shorter than the time until an attacker's address is used again.
/// There is room for all visitors: connections that only their client reset are kept for ten
/// minutes.
const WORDS: &str = "--window-seconds 60 --max-flows 16384";
/// Number of times that a daemon is killed at the beginning...
const RESTARTS: u32 = 5;
/// ...and the lifetime of each: afterwards one is watched.
const LIFE: Duration = Duration::from_secs(20);

/// Address ranges of the client namespace.
/// The rows' honest clients have the lowest, other attackers those from 234 on.
mod address {
    pub const ROWS: u8 = 200;
    pub const TALKERS: u8 = 200;
    pub const FLOODERS: u8 = 210;
    pub const VISITORS: u8 = 215;
    pub const JOINERS: u8 = 225;
    pub const ALL: u8 = 250;
}

/// Duration of the run, and whether it continues.
pub struct Clock {
    start: Instant,
    time: Duration,
    failed: AtomicBool,
    /// Set once no daemon is killed any more.
    settled: AtomicBool,
}

impl Clock {
    pub fn goes_on(&self) -> bool {
        self.start.elapsed() < self.time && !self.failed.load(Relaxed)
    }

    /// End all threads when something is wrong.
    fn unless_wrong<T>(&self, result: Result<T>) -> Result<T> {
        self.failed.fetch_or(result.is_err(), Relaxed);
        result
    }

    /// Sleep in pieces; return `false` when the run is over.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.goes_on() && Instant::now() < until {
            thread::sleep((until - Instant::now()).min(Duration::from_millis(100)));
        }
        self.goes_on()
    }
}

/// Kill the daemons in sequence, then open connections for midstream pickup.
fn restart_then_join(stage: &Stage, clock: &Clock) -> Result<u64> {
    let restarts = if clock.time > 10 * LIFE { RESTARTS } else { 1 };
    for n in 0..restarts {
        if n == 0 || clock.sleep(LIFE) {
            stage.guard.restart()?;
        }
    }
    clock.settled.store(true, Relaxed);
    peaceful::join(stage, clock)
}

fn joined<T>(thread: ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

fn soak(time: Duration) -> Result<()> {
    let options = PairOptions { clients: address::ALL, offloads: false, ..PairOptions::default() };
    let stage = Open::new(options)?.guard_with("xdp-native", WORDS)?;
    hostile::let_floods_run(&stage)?;
    stage.pair.server.ip(&format!("route add {SPOOFED} via 10.77.0.1"))?;
    let [failed, settled] = [false; 2].map(AtomicBool::new);
    let clock = Clock { start: Instant::now(), time, failed, settled };
    let (stage_ref, clock_ref) = (&stage, &clock);
    thread::scope(|scope| -> Result<()> {
        let go = |name: &'static str, run: fn(&Stage, &Clock) -> Result<u64>| {
            let thread = scope.spawn(move || clock_ref.unless_wrong(run(stage_ref, clock_ref)));
            (name, thread)
        };
        let threads = [
            go("messages of those who stayed", peaceful::talk),
            go("connections that came and went", peaceful::visit),
            go("connections that were joined", restart_then_join),
            go("pings of flooders", hostile::flood),
            go("spoofed packets", hostile::spoof),
            go("rows", hostile::rows),
        ];
        let watching = scope.spawn(|| clock.unless_wrong(watch::watch(&stage, &clock)));
        let mut wrong = Vec::new();
        for (name, thread) in threads {
            match joined(thread).with_context(|| name) {
                Ok(count) => println!("{count} {name}"),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        let watched = joined(watching).and_then(|watched| watched.judge(time));
        wrong.extend(watched.err().map(|error| format!("{error:#}")));
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })?;
    stage.finish()
}

#[test]
fn everything_at_once() -> Result<()> {
    needs_root!();
    soak(SHORT)
}

#[test]
#[ignore = "takes 20 minutes, or WS_GUARD_SOAK_SECONDS: cargo xtask test --nightly"]
fn everything_at_once_for_long() -> Result<()> {
    needs_root!();
    let seconds = std::env::var(SECONDS).ok().map(|text| text.parse()).transpose()?;
    soak(Duration::from_secs(seconds.unwrap_or(LONG)))
}
