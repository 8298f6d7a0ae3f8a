//! Waiting.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

/// For what must come, on a busy machine.
const WAIT: Duration = Duration::from_secs(60);

/// Wait until `done` says so.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
