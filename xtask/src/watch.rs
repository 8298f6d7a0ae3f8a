//! A server's memory, looked at while it is attacked.
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use ws_guard_testkit::usage::Usage;

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(5);

/// Looks at the memory of a process from another thread.
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
    /// Watch the process; the attack begins `calm` later, and stops at this number of bytes of
    /// growth.
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

    /// Look until [`Watch::done`].
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

    /// Most anonymous memory it had, less what it had at first, in bytes.
    pub fn growth(&self) -> u64 {
        self.peak.load(Ordering::Relaxed).saturating_sub(self.before.anonymous)
    }

    /// CPU time since the beginning; nothing of a process that is gone.
    pub fn cpu(&self) -> Duration {
        Usage::of(self.pid).unwrap_or_default().cpu.saturating_sub(self.before.cpu)
    }

    pub fn died(&self) -> bool {
        self.died.load(Ordering::Relaxed)
    }

    /// It lives, and has not grown by too much.
    pub fn go_on(&self) -> bool {
        !self.died() && self.stopped.load(Ordering::Relaxed) == 0
    }

    /// When it had grown by too much.
    pub fn stopped_at(&self) -> Option<Duration> {
        let after = self.stopped.load(Ordering::Relaxed);
        (after > 0).then(|| Duration::from_millis(after))
    }
}
