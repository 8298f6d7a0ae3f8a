//! The window oracle: every ping time, kept for ever.

use fastrand::Rng;

/// The next time pings come: often close, sometimes exactly a window later.
pub fn later(rng: &mut Rng, now: u64, window_ms: u64) -> u64 {
    now + match rng.u8(..8) {
        0..=2 => 0,
        3..=5 => rng.u64(..=window_ms / 8 + 1),
        6 => window_ms - rng.u64(..=1),
        _ => rng.u64(..=2 * window_ms),
    }
}

/// All pings of one source or connection.
#[derive(Clone, Debug, Default)]
pub struct Pings {
    /// Times in milliseconds, ascending, in the order they came.
    times: Vec<u64>,
}

impl Pings {
    /// How many of the pings came in the window of `window_ms` that ends at `now`.
    pub fn inside(&self, now: u64, window_ms: u64) -> u64 {
        let until = |end| self.times.partition_point(|time| *time <= end) as u64;
        until(now) - now.checked_sub(window_ms).map_or(0, until)
    }

    /// One ping comes.
    pub fn log(&mut self, now: u64) {
        self.times.push(now);
    }

    /// One ping comes; does it keep to the limit?
    pub fn ping(&mut self, now: u64, limit: u64, window_ms: u64) -> bool {
        self.log(now);
        limit == 0 || self.inside(now, window_ms) <= limit
    }
}
