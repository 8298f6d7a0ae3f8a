//! Waiting for events.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Poll until there is an answer; `None` when the time is up.
pub fn wait_for<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        match ask() {
            None if start.elapsed() < patience => thread::sleep(Duration::from_millis(2)),
            answer => return answer,
        }
    }
}
