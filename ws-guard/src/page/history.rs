//! History of the last minutes, as rates per second.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use ws_guard_common::maps::{Counter, Counters};

use crate::domain::status::{Packets, counter};

/// Number of points: five minutes.
const KEPT: usize = 300;
/// Minimum distance of two points; closer readings make none.
const NEAREST: Duration = Duration::from_millis(800);

/// Rates per second at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since 1970.
    pub time: f64,
    pub pings: f64,
    pub defused: f64,
    pub dropped: f64,
    /// Percentiles of connections' latest heartbeats; null without a viewer.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// Sums to be compared with the next ones.
#[derive(Clone, Copy)]
struct Sums {
    at: Instant,
    pings: u64,
    defused: u64,
    dropped: u64,
}

/// Latest points, the oldest first.
#[derive(Default)]
pub struct History {
    points: VecDeque<Point>,
    before: Option<Sums>,
}

impl History {
    /// Add a reading of the counters.
    pub fn add(&mut self, counters: &Counters, at: Instant) {
        let packets = Packets::new(counters);
        let now = Sums {
            at,
            pings: counter(counters, Counter::Pings),
            defused: packets.defused,
            dropped: packets.dropped,
        };
        let Some(before) = self.before else {
            self.before = Some(now);
            return;
        };
        let span = at.duration_since(before.at);
        if span < NEAREST {
            return;
        }
        self.before = Some(now);
        // A counter that fell was reset by a new load.
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / span.as_secs_f64();
        if self.points.len() == KEPT {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            pings: rate(before.pings, now.pings),
            defused: rate(before.defused, now.defused),
            dropped: rate(before.dropped, now.dropped),
            ..Point::default()
        });
    }

    /// Add current heartbeats to the latest point.
    pub fn beat(&mut self, p50_ms: Option<f64>, p99_ms: Option<f64>) {
        if let Some(point) = self.points.back_mut() {
            (point.p50_ms, point.p99_ms) = (p50_ms, p99_ms);
        }
    }

    pub fn latest(&self) -> Option<Point> {
        self.points.back().copied()
    }

    pub fn points(&self) -> impl Iterator<Item = &Point> {
        self.points.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_rates_and_only_the_latest_are_kept() {
        let (mut history, start) = (History::default(), Instant::now());
        let mut counters = Counters::ZERO;
        let mut after = |history: &mut History, ms, pings| {
            counters.events[Counter::Pings as usize] = pings;
            history.add(&counters, start + Duration::from_millis(ms));
        };
        after(&mut history, 0, 100);
        after(&mut history, 500, 150);
        assert_eq!(history.latest(), None);
        after(&mut history, 2_000, 300);
        history.beat(Some(1.0), None);
        let latest = history.latest().unwrap();
        assert_eq!((latest.pings, latest.p50_ms), (100.0, Some(1.0)));
        // Loaded anew, counters start at 0.
        after(&mut history, 3_000, 5);
        assert_eq!(history.latest().unwrap().pings, 0.0);
        for second in 4..1_000 {
            after(&mut history, second * 1_000, 5);
        }
        assert_eq!(history.points().count(), KEPT);
    }
}
