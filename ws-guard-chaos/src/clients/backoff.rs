//! Times before attempts to come back, as the browser client takes them.

use std::time::{Duration, Instant};

/// Shorter than the browser client's default, which alone would leave nothing of the 800 ms that three
/// round trips of 200 ± 40 ms take most of.
const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(30);
/// Past this the bound grows on.
const EARLY: Duration = Duration::from_secs(5);
/// A connection that lived for this long makes up for the failures before it.
const STABLE: Duration = Duration::from_secs(5);

/// Exponential back-off with full jitter.
#[derive(Default)]
pub struct Backoff {
    failures: u32,
    since: Option<Instant>,
}

impl Backoff {
    /// The time to wait after one more failure.
    pub fn next(&mut self) -> Duration {
        let bound = MOST.min(FIRST * 2u32.pow(self.failures.min(10)));
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.failures < 2 || since.elapsed() > EARLY {
            self.failures += 1;
        }
        bound.mul_f64(fastrand::f64())
    }

    /// A connection has ended that was open for this long.
    pub fn lived(&mut self, time: Duration) {
        if time >= STABLE {
            *self = Backoff::default();
        }
    }
}

/// The time to wait that the reason of a close frame names.
pub fn hinted(code: u16, reason: &str) -> Option<Duration> {
    let (_, ms) = reason.rsplit_once("retry-after-ms=")?;
    let ms = ms.trim().parse().ok()?;
    matches!(code, 1012 | 1013).then(|| Duration::from_millis(ms))
}
