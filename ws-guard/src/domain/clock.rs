//! Conversion between the kernel's clock and the wall clock.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_getres, clock_gettime};
pub use ws_guard_server::timestamp::Timestamp;

/// Both clocks at one moment, for converting the kernel's times into times of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds of CLOCK_MONOTONIC_COARSE, the clock of the kernel programs' times.
    pub now_ns: u64,
    /// The same moment by the wall clock.
    pub wall: SystemTime,
}

impl Clock {
    /// Read both clocks.
    pub fn now() -> Clock {
        Clock { now_ns: monotonic_ns(), wall: SystemTime::now() }
    }

    /// Convert a time of the kernel's clock into a time of day.
    /// `None` for 0 (never) and for times beyond RFC 3339.
    pub fn at(&self, ns: u64) -> Option<Timestamp> {
        if ns == 0 {
            return None;
        }
        let wall = if ns >= self.now_ns {
            self.wall.checked_add(Duration::from_nanos(ns - self.now_ns))
        } else {
            self.wall.checked_sub(Duration::from_nanos(self.now_ns - ns))
        };
        wall.filter(|time| Timestamp::fits(*time)).map(Timestamp)
    }

    /// Return the milliseconds since a time of the kernel's clock; 0 if it is ahead.
    pub fn since_ms(&self, ns: u64) -> u64 {
        self.now_ns.saturating_sub(ns) / 1_000_000
    }
}

/// Read CLOCK_MONOTONIC_COARSE, as `bpf_ktime_get_coarse_ns` does, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    // Reading this clock fails on no kernel that can load the programs; 0 would mean "never".
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map(|time| Duration::from(time).as_nanos() as u64)
        .unwrap_or(0)
}

/// Return the step of that clock in milliseconds, rounded up.
pub fn step_ms() -> u32 {
    /// Coarsest step of kernels: CONFIG_HZ=100.
    const COARSEST: u32 = 10;
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map(|step| Duration::from(step).as_nanos().div_ceil(1_000_000) as u32)
        .unwrap_or(COARSEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock {
            now_ns: 10_000_000_000,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    #[test]
    fn kernel_times_become_times_of_day() {
        let at = |ns| clock().at(ns).map(|time| time.to_string());
        assert_eq!(at(10_000_000_000).as_deref(), Some("2023-11-14T22:13:20.000Z"));
        assert_eq!(at(8_500_000_000).as_deref(), Some("2023-11-14T22:13:18.500Z"));
        assert_eq!(at(12_000_000_000).as_deref(), Some("2023-11-14T22:13:22.000Z"));
    }

    #[test]
    fn never_and_forever_have_no_time_of_day() {
        assert_eq!(clock().at(0), None);
        // 584 years ahead is still a date; it must not overflow into anything else.
        let forever = clock().at(u64::MAX).map(|time| time.to_string());
        assert!(forever.is_none_or(|text| text.starts_with("26")));
    }

    #[test]
    fn the_coarse_clock_has_a_step() {
        assert!((1..=10).contains(&step_ms()));
        assert!(monotonic_ns() > 0);
    }
}
