//! Window oracle: every ping time, kept for ever.

use fastrand::Rng;

/// Return the next time of pings: often close, sometimes exactly a window later.
pub fn later(rng: &mut Rng, now: u64, window_ms: u64) -> u64 {
    now + match rng.u8(..8) {
        0..=2 => 0,
        3..=5 => rng.u64(..=window_ms / 8 + 1),
        6 => window_ms - rng.u64(..=1),
        _ => rng.u64(..=2 * window_ms),
    }
}

/// Pings of one source or connection.
#[derive(Clone, Debug, Default)]
pub struct Pings {
    /// Times in milliseconds, ascending, in order of arrival.
    times: Vec<u64>,
}

impl Pings {
    /// Count the pings in the window of `window_ms` that ends at `now`.
    pub fn inside(&self, now: u64, window_ms: u64) -> u64 {
        let until = |end| self.times.partition_point(|time| *time <= end) as u64;
        until(now) - now.checked_sub(window_ms).map_or(0, until)
    }

    /// Record a ping.
    pub fn log(&mut self, now: u64) {
        self.times.push(now);
    }

    /// Record a ping, and check it against the limit.
    pub fn ping(&mut self, now: u64, limit: u64, window_ms: u64) -> bool {
        self.log(now);
        limit == 0 || self.inside(now, window_ms) <= limit
    }
}
