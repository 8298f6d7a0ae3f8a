//! Resources of the daemon during the soak.
use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::usage::Usage;

use super::Clock;
use crate::stage::Stage;

const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Bytes of memory that the last quarter may need more than the one before...
const GROWTH: u64 = 2 << 20;
/// ...once the flow table is as full as it gets:
/// connections that only their client ended are kept for ten minutes.
const WARM: Duration = Duration::from_secs(600);
/// Maximum of kernel events a second: each CPU reports 100 of each of the 7 kinds.
const KERNEL_EVENTS: u64 = 7 * 100;
const TABLES: [&str; 3] = ["flows", "sources", "pending"];

/// Observations, in order.
#[derive(Default)]
pub struct Watched {
    /// Bytes of memory of the last daemon: resident and anonymous.
    memory: Vec<u64>,
    /// Most entries of each of [`TABLES`], and their capacity.
    most: [(u64, u64); TABLES.len()],
    /// CPU time of the last daemon.
    cpu: Duration,
    /// Number of lines that the last daemon has logged, and the time it took.
    lines: usize,
    time: Duration,
    /// Events that were not reported.
    held_back: Value,
}

/// Sample now and then, from when no daemon is killed any more.
pub fn watch(stage: &Stage, clock: &Clock) -> Result<Watched> {
    let mut watched = Watched::default();
    while !clock.settled.load(Relaxed) {
        if !clock.sleep(Duration::from_millis(100)) {
            break;
        }
    }
    let pid = stage.guard.pid();
    let start = Instant::now();
    while clock.sleep(SAMPLE_EVERY) {
        let status: Value = stage.guard.ask("status")?;
        for (most, table) in watched.most.iter_mut().zip(TABLES) {
            let number = |field: &str| {
                let found = status["tables"][table][field].as_u64();
                found.with_context(|| format!("`status` has no {field} of {table}"))
            };
            *most = (most.0.max(number("entries")?), number("capacity")?);
        }
        let usage = Usage::of(pid)?;
        watched.memory.push(usage.anonymous);
        watched.cpu = usage.cpu;
        watched.held_back = status["events"].clone();
    }
    ensure!(stage.guard.pid() == pid || clock.failed.load(Relaxed), "the daemon changed");
    watched.time = start.elapsed();
    watched.lines = stage.guard.log().lines().count();
    Ok(watched)
}

fn mean(values: &[u64]) -> u64 {
    values.iter().sum::<u64>() / (values.len() as u64).max(1)
}

impl Watched {
    /// Check that memory is flat, and tables and log are within bounds.
    pub fn judge(&self, time: Duration) -> Result<()> {
        let quarter = self.memory.len() / 4;
        ensure!(quarter > 0, "only {} samples in {time:?}", self.memory.len());
        let quarters: Vec<u64> = self.memory.chunks_exact(quarter).map(mean).collect();
        println!(
            "{} samples: memory {quarters:?} bytes in each quarter of the time, at most {}; CPU time \
             {:?}; {} lines logged in {:?}; held back {}",
            self.memory.len(),
            self.memory.iter().max().unwrap_or(&0),
            self.cpu,
            self.lines,
            self.time,
            self.held_back,
        );
        for ((most, capacity), table) in self.most.iter().zip(TABLES) {
            println!("{table}: at most {most} of {capacity}");
            ensure!(most <= capacity, "{most} {table}, {capacity} may be");
        }
        let (before, last) = (quarters[2], quarters[3]);
        let flat = time / 2 < WARM || last <= before + GROWTH;
        ensure!(flat, "memory grew from {before} to {last} bytes");
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let lines = KERNEL_EVENTS * cpus * (time.as_secs() + 1);
        ensure!((self.lines as u64) < lines, "{} lines in {time:?}", self.lines);
        Ok(())
    }
}
