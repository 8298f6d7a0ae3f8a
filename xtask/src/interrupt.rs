//! Ctrl-C: running work stops where it is and cleans up.
use std::{
    io::{BufRead, stdin},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

static STOP: AtomicBool = AtomicBool::new(false);

/// Reduce SIGINT, SIGTERM and SIGHUP from now on to the flag of [`stopped`].
pub fn watch() -> Result<()> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("watching for Ctrl-C")
}

/// Stop on Enter too.
pub fn watch_enter() {
    thread::spawn(|| {
        // The end of the input is not Enter: there may be no terminal.
        if stdin().lock().read_line(&mut String::new()).is_ok_and(|bytes| bytes > 0) {
            STOP.store(true, Ordering::Relaxed);
        }
    });
}

pub fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

pub fn check() -> Result<()> {
    ensure!(!stopped(), "interrupted");
    Ok(())
}
