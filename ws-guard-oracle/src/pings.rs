//! The window oracle: every ping time, kept for ever.

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
