//! Lock-free token bucket for new connections.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Limit of arrivals a second, with a burst of one second's worth.
#[derive(Debug)]
pub struct Bucket {
    started: Instant,
    /// End of the used-up time, in nanoseconds from `started` (GCRA).
    used_until: AtomicU64,
}

impl Default for Bucket {
    fn default() -> Bucket {
        Bucket { started: Instant::now(), used_until: AtomicU64::new(0) }
    }
}

impl Bucket {
    /// Take one arrival, if `rate` a second permits it; 0 permits any number.
    pub fn take(&self, rate: u32) -> bool {
        self.take_at(self.started.elapsed(), rate)
    }

    fn take_at(&self, now: Duration, rate: u32) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let Some(each) = SECOND.checked_div(u64::from(rate)) else { return true };
        let now = now.as_nanos() as u64;
        let taken = |until: u64| {
            let until = until.max(now) + each;
            (until <= now + SECOND).then_some(until)
        };
        self.used_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_at_once_and_then_the_rate() {
        let bucket = Bucket::default();
        let take = |ms: u64, most: usize| {
            (0..most).filter(|_| bucket.take_at(Duration::from_millis(ms), 10)).count()
        };
        assert_eq!((take(0, 50), take(0, 50)), (10, 0));
        assert_eq!((take(100, 50), take(350, 50)), (1, 2));
        assert_eq!(take(60_000, 50), 10);
        assert!((0..1000).all(|_| bucket.take(0)));
    }
}
