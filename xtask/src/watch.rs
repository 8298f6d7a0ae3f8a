//! Memory of a server, watched during an attack.
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use ws_guard_testkit::usage::Usage;

/// Interval between two looks at it.
const EVERY: Duration = Duration::from_millis(5);

/// Watcher of a process's memory from another thread.
pub struct Watch {
    pid: u32,
    before: Usage,
    max_growth: u64,
    began: Instant,
    peak: AtomicU64,
    /// Milliseconds after the beginning; 0 for not yet.
    stopped: AtomicU64,
    died: AtomicBool,
    done: AtomicBool,
}

impl Watch {
    /// Watch the process from now; the attack begins `calm` later.
    /// It stops at this number of bytes of growth.
    pub fn new(pid: u32, max_growth: u64, calm: Duration) -> Result<Watch> {
        let before = Usage::of(pid)?;
        Ok(Watch {
            pid,
            before,
            max_growth,
            began: Instant::now() + calm,
            peak: AtomicU64::new(before.anonymous),
            stopped: AtomicU64::new(0),
            died: AtomicBool::new(false),
            done: AtomicBool::new(false),
        })
    }

    /// Watch until [`Watch::done`].
    pub fn run(&self) {
        while !self.done.load(Ordering::Relaxed) {
            match Usage::of(self.pid) {
                Ok(usage) => {
                    self.peak.fetch_max(usage.anonymous, Ordering::Relaxed);
                }
                Err(_) => self.died.store(true, Ordering::Relaxed),
            }
            if self.growth() > self.max_growth && self.stopped.load(Ordering::Relaxed) == 0 {
                let after = self.began.elapsed().as_millis().max(1) as u64;
                self.stopped.store(after, Ordering::Relaxed);
            }
            thread::sleep(EVERY);
        }
    }

    pub fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Return peak anonymous memory, less that at first, in bytes.
    pub fn growth(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).saturating_sub(self.before.anonymous)
    }

    /// Return CPU time since the beginning; nothing for a process that is gone.
    pub fn cpu(&self) -> Duration {
        Usage::of(self.pid).unwrap_or_default().cpu.saturating_sub(self.before.cpu)
    }

    pub fn died(&self) -> bool {
        self.died.load(Ordering::Relaxed)
    }

    /// Check that it lives, and has not grown by too much.
    pub fn go_on(&self) -> bool {
        !self.died() && self.stopped.load(Ordering::Relaxed) == 0
    }

    /// Return when it had grown by too much.
    pub fn stopped_at(&self) -> Option<Duration> {
        let after = self.stopped.load(Ordering::Relaxed);
        (after > 0).then(|| Duration::from_millis(after))
    }
}
