//! Rate window: at most N pings in *any* W milliseconds.
//!
//! A log of the latest ping times, not a counter that resets: a client within the limit is never
//! over it, one that exceeds it always is, wherever the window begins.
//!
//! Up to [`SLOTS`] pings a window each ping has a slot of its own, and the result is exact. Above
//! that, a slot holds a group of 2^shift pings (see [`Rate::new`]) and the time of the group's
//! first. A group on the edge of the window counts as outside, so that the error is always in the
//! client's favour: up to 2^shift - 1 pings more than the limit may pass in a window, never fewer.

/// Slots in the log: limits up to this many pings a window are exact.
pub const SLOTS: usize = 64;
const SLOT_MASK: u32 = SLOTS as u32 - 1;

/// A limit and its window, which change together. All zero: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Pings allowed in any window. 0 means unlimited.
    pub limit: u32,
    /// Length of the window in milliseconds, plus the resolution of the clock that stamps pings, so
    /// that two pings less than a window apart are never taken for more.
    pub window_ms: u32,
    /// A slot of the log holds 2^shift pings.
    pub shift: u32,
}

/// Error in a limit or a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateError {
    /// More pings than [`Rate::MAX_LIMIT`].
    LimitTooLarge,
    /// A window of zero, or one over [`Rate::MAX_WINDOW_MS`].
    WindowOutOfRange,
}

impl Rate {
    /// Largest limit that can be set.
    pub const MAX_LIMIT: u32 = 1 << 20;
    /// Longest window: one hour. Ping times are 32 bit milliseconds and must not wrap in the log.
    pub const MAX_WINDOW_MS: u32 = 3_600_000;

    /// A limit of `limit` pings in any `window_ms`, stamped by a clock that advances in steps of
    /// `clock_step_ms`.
    pub const fn new(limit: u32, window_ms: u32, clock_step_ms: u32) -> Result<Rate, RateError> {
        if limit > Self::MAX_LIMIT {
            return Err(RateError::LimitTooLarge);
        }
        if window_ms == 0 || window_ms > Self::MAX_WINDOW_MS {
            return Err(RateError::WindowOutOfRange);
        }
        let mut shift = 0;
        // With groups one more slot is in use: the group that is being filled.
        while limit > (SLOTS as u32 - (shift > 0) as u32) << shift {
            shift += 1;
        }
        // Stamps are whole milliseconds, too.
        let step = if clock_step_ms == 0 { 0 } else { clock_step_ms.saturating_add(1) };
        Ok(Rate { limit, window_ms: window_ms.saturating_add(step), shift })
    }

    /// Largest number of pings over the limit that may pass in a window: 0 up to [`SLOTS`].
    pub const fn max_error(&self) -> u32 {
        (1 << self.shift) - 1
    }
}

/// Log of one source or one connection. All zero: nothing logged.
///
/// Ping number `n` since the log was empty belongs to group `n >> shift`, whose first ping's time
/// is in slot `group % SLOTS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RateWindow {
    /// Times of the groups' first pings, in milliseconds, modulo 2³².
    stamps: [u32; SLOTS],
    /// Pings logged since the log was empty; kept below 2³¹, see [`RateWindow::record`].
    total: u32,
    /// Time of the latest ping.
    last_ms: u32,
    /// Grouping that `stamps` was written with.
    shift: u32,
    _pad: u32,
}

impl Default for RateWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl RateWindow {
    /// An empty log.
    pub const fn new() -> Self {
        Self { stamps: [0; SLOTS], total: 0, last_ms: 0, shift: 0, _pad: 0 }
    }

    /// Forget everything.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.total = 0;
    }

    /// Log `pings` pings at `now_ms`, and return how many are within the limit: the first ones; the
    /// others are over it.
    ///
    /// Pings over the limit are logged too: a continuing flood stays over.
    #[inline(always)]
    pub fn charge(&mut self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        let now_ms = self.not_before_last(now_ms);
        self.forget_old(now_ms, rate);
        let rate = Rate { shift: self.shift, ..rate };
        if pings == 1 {
            // By far the most common case, without a loop.
            let kept = rate.limit == 0 || !self.over(0, now_ms, rate);
            self.record_one(now_ms, rate);
            return kept as u32;
        }
        let kept = self.within(now_ms, rate, pings);
        self.record(now_ms, rate, pings);
        kept
    }

    /// Number of logged pings inside the window that ends at `now_ms`: exact without grouping,
    /// otherwise up to one group too low. At most what the log holds.
    pub fn count(&self, now_ms: u32, rate: Rate) -> u32 {
        let mut seen = *self;
        let now_ms = seen.not_before_last(now_ms);
        seen.forget_old(now_ms, rate);
        let shift = seen.shift & 31;
        let groups = (seen.total + (1 << shift) - 1) >> shift;
        let mut inside = 0;
        for group in (groups.saturating_sub(SLOTS as u32)..groups).rev() {
            let stamp = seen.stamps[(group & SLOT_MASK) as usize];
            if now_ms.wrapping_sub(stamp) >= rate.window_ms {
                break;
            }
            inside += (1 << shift).min(seen.total - (group << shift));
        }
        inside
    }

    /// Number of the next `pings` within the limit if they all arrive at `now_ms`. Logs nothing.
    #[inline(always)]
    pub fn room(&self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        self.within(self.not_before_last(now_ms), Rate { shift: self.shift, ..rate }, pings)
    }

    /// Check whether a ping at `now_ms` is within the limit. Logs nothing.
    #[inline(always)]
    pub fn has_room(&self, now_ms: u32, rate: Rate) -> bool {
        let rate = Rate { shift: self.shift, ..rate };
        rate.limit == 0 || !self.over(0, self.not_before_last(now_ms), rate)
    }

    /// Number of the next `pings` within the limit if they all arrive at `now_ms`: those before the
    /// first that is over it.
    #[inline(always)]
    fn within(&self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        if rate.limit == 0 {
            return pings;
        }
        // Pings past the limit in one batch are over it in any case.
        let most = if pings < rate.limit { pings } else { rate.limit };
        if most == 0 || self.over(0, now_ms, rate) {
            return 0;
        }
        if !self.over(most.wrapping_sub(1), now_ms, rate) {
            return most;
        }
        self.first_over(now_ms, rate)
    }

    /// First ping from now that would be over the limit, when there is one and it is not the very
    /// next. Rare: once per throttle.
    ///
    /// All pings of a group are judged alike, so that only groups are searched.
    #[inline(always)]
    fn first_over(&self, now_ms: u32, rate: Rate) -> u32 {
        let shift = rate.shift & 31;
        let free = rate.limit.saturating_sub(self.total);
        let mut group = self.total.wrapping_add(free).wrapping_sub(rate.limit) >> shift;
        let mut i = 0u32;
        while i <= SLOTS as u32 {
            let stamp = self.stamps[(group & SLOT_MASK) as usize];
            if now_ms.wrapping_sub(stamp) < rate.window_ms {
                break;
            }
            group = group.wrapping_add(1);
            i += 1;
        }
        let first = (group << shift).wrapping_add(rate.limit).wrapping_sub(self.total);
        if first > free && first <= rate.limit { first } else { free }
    }

    /// Check whether the `next`-th ping from now (the very next is 0) would be over the limit: the
    /// one a whole limit before it is still inside the window.
    #[inline(always)]
    fn over(&self, next: u32, now_ms: u32, rate: Rate) -> bool {
        let number = self.total.wrapping_add(next);
        let group = number.wrapping_sub(rate.limit) >> (rate.shift & 31);
        let stamp = self.stamps[(group & SLOT_MASK) as usize];
        number >= rate.limit && now_ms.wrapping_sub(stamp) < rate.window_ms
    }

    /// Log `pings` pings.
    #[inline(always)]
    fn record(&mut self, now_ms: u32, rate: Rate, pings: u32) {
        let shift = rate.shift & 31;
        let group = 1u32 << shift;
        let first = self.total.wrapping_add(group - 1) >> shift;
        self.total = self.total.wrapping_add(pings);
        let end = self.total.wrapping_add(group - 1) >> shift;
        let begun = end.wrapping_sub(first);
        let mut i = 0u32;
        while i < SLOTS as u32 {
            if i >= begun {
                break;
            }
            self.stamps[(first.wrapping_add(i) & SLOT_MASK) as usize] = now_ms;
            i += 1;
        }
        self.settle(now_ms);
    }

    /// Log one ping.
    #[inline(always)]
    fn record_one(&mut self, now_ms: u32, rate: Rate) {
        let shift = rate.shift & 31;
        if self.total & ((1 << shift) - 1) == 0 {
            self.stamps[(self.total >> shift & SLOT_MASK) as usize] = now_ms;
        }
        self.total = self.total.wrapping_add(1);
        self.settle(now_ms);
    }

    /// Finish logging: keep the count far from wrapping; a whole number of rounds leaves every slot
    /// in place.
    #[inline(always)]
    fn settle(&mut self, now_ms: u32) {
        if self.total >= 1 << 31 {
            self.total -= 1 << 30;
        }
        self.last_ms = now_ms;
    }

    /// Time not before the latest ping's.
    /// Two CPUs may read the clock in one order and get the lock in the other: a slightly earlier
    /// time becomes that of the latest ping. (A difference of more than ten seconds means that the
    /// 32 bit clock has wrapped, after weeks without a ping.)
    #[inline(always)]
    fn not_before_last(&self, now_ms: u32) -> u32 {
        let behind = self.last_ms.wrapping_sub(now_ms);
        if self.total != 0 && behind < 10_000 { self.last_ms } else { now_ms }
    }

    /// Empty the log when every logged ping has left the window.
    ///
    /// A log in larger groups than `rate` needs works as well, though less exactly, until
    /// [`RateWindow::regroup`] is called. One in smaller groups does not reach back a whole limit.
    #[inline(always)]
    fn forget_old(&mut self, now_ms: u32, rate: Rate) {
        if now_ms.wrapping_sub(self.last_ms) >= rate.window_ms || self.shift < rate.shift {
            self.total = 0;
        }
        if self.total == 0 {
            self.shift = rate.shift;
        }
    }

    /// A group of the log is 2^shift pings.
    pub const fn shift(&self) -> u32 {
        self.shift
    }

    /// Check whether the log's groups differ from those of `rate`: then [`RateWindow::regroup`]
    /// first, or some pings do not count.
    #[inline(always)]
    pub const fn is_grouped_otherwise(&self, rate: Rate) -> bool {
        self.shift != rate.shift && self.total != 0
    }

    /// Rewrite the log in the groups of `rate`, because the limit changes.
    /// `scratch` is overwritten. Not for the packet path: the caller that changes the limit calls
    /// it, before the change if the groups become larger, after it if they become smaller.
    ///
    /// If a group is split, all of its pings get the time of its first; pings older than the log
    /// get a time outside the window. Both in the client's favour.
    #[inline(always)]
    pub fn regroup(&mut self, now_ms: u32, rate: Rate, scratch: &mut [u32; SLOTS]) {
        const ALL: u32 = SLOTS as u32;
        let (old, new) = (self.shift & 31, rate.shift & 31);
        let held = self.total.wrapping_add((1 << old) - 1) >> old;
        let oldest = held.saturating_sub(ALL);
        let groups = self.total.wrapping_add((1 << new) - 1) >> new;
        let mut i = 0u32;
        while i < ALL {
            let group = groups.wrapping_sub(ALL - i);
            let from = group << new >> old;
            let stamp = self.stamps[(from & SLOT_MASK) as usize];
            let outside = now_ms.wrapping_sub(rate.window_ms);
            // Without a branch: the kernel's verifier would follow both sides of each of 64.
            let before_first = (group.wrapping_sub(groups) as i32 >> 31) as u32;
            let held = !((from.wrapping_sub(oldest) as i32 >> 31) as u32);
            let known = before_first & held;
            scratch[(group & SLOT_MASK) as usize] = stamp & known | outside & !known;
            i += 1;
        }
        let mut i = 0;
        while i < SLOTS {
            self.stamps[i] = scratch[i];
            i += 1;
        }
        self.shift = rate.shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(limit: u32) -> Rate {
        Rate::new(limit, 10_000, 0).unwrap()
    }

    #[test]
    fn thirty_keep_to_the_limit_the_next_does_not() {
        let mut window = RateWindow::new();
        for i in 0..30 {
            assert_eq!(window.charge(1_000 + i * 300, rate(30), 1), 1, "ping {i}");
        }
        assert_eq!(window.charge(10_999, rate(30), 1), 0);
        // The first ping left at 11,000, but the one over the limit took its place.
        assert_eq!(window.charge(11_000, rate(30), 1), 0);
        assert_eq!(window.charge(30_000, rate(30), 1), 1);
    }

    #[test]
    fn the_window_slides_and_is_not_reset() {
        let mut window = RateWindow::new();
        assert_eq!(window.charge(9_900, rate(30), 15), 15);
        assert_eq!(window.charge(10_100, rate(30), 15), 15);
        // A window reset at 10,000 or 20,000 would let 30 more pass here.
        assert_eq!(window.charge(19_899, rate(30), 1), 0);
    }

    #[test]
    fn a_burst_in_one_segment_is_cut_at_the_limit() {
        let mut window = RateWindow::new();
        assert_eq!(window.charge(5, rate(30), 240), 30);
        assert_eq!(window.count(5, rate(30)), 64);
        assert_eq!(window.charge(6, rate(30), 1), 0);
    }

    #[test]
    fn no_limit_keeps_all() {
        let mut window = RateWindow::new();
        assert_eq!(window.charge(5, rate(0), 10_000), 10_000);
    }

    #[test]
    fn a_limit_above_the_slots_errs_by_less_than_a_group_and_never_against_the_client() {
        for limit in [65, 100, 128, 1000, 100_000] {
            let rate = rate(limit);
            let mut window = RateWindow::new();
            let mut kept = 0;
            for _ in 0..limit + 2 * rate.max_error() + 2 {
                kept += window.charge(77, rate, 1);
            }
            assert!(kept >= limit, "limit {limit}: {kept} passed");
            assert!(kept <= limit + rate.max_error(), "limit {limit}: {kept} passed");
        }
    }

    #[test]
    fn room_counts_down_and_comes_back() {
        let mut window = RateWindow::new();
        assert_eq!(window.room(0, rate(2), 5), 2);
        window.charge(100, rate(0), 1);
        assert_eq!(window.room(100, rate(2), 5), 1);
        window.charge(200, rate(0), 1);
        assert_eq!(window.room(200, rate(2), 5), 0);
        assert!(!window.has_room(200, rate(2)));
        assert_eq!(window.room(10_100, rate(2), 5), 1);
        assert_eq!(window.room(10_200, rate(2), 5), 2);
    }

    #[test]
    fn a_clock_read_late_does_not_empty_the_log() {
        let mut window = RateWindow::new();
        assert_eq!(window.charge(1_004, rate(30), 30), 30);
        assert_eq!(window.charge(1_000, rate(30), 1), 0);
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        assert_eq!(Rate::new(1 << 21, 1_000, 0), Err(RateError::LimitTooLarge));
        assert_eq!(Rate::new(30, 0, 0), Err(RateError::WindowOutOfRange));
        assert_eq!(Rate::new(30, 3_600_001, 0), Err(RateError::WindowOutOfRange));
    }
}
