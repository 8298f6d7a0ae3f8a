//! One source, an address or a prefix that pings: the value of the source table.

use crate::{
    maps::{Limits, SpinLock, action},
    window::RateWindow,
};

/// [`Source::flags`]: the allowlist covers it; it is counted and never acted on.
pub const ALLOWED: u32 = 1 << 0;
/// [`Source::flags`]: throttled by an operator, not by its pings.
pub const MANUAL: u32 = 1 << 1;
/// [`Source::flags`]: it went so far past the limit that it is dropped until it is free again.
pub const ESCALATED: u32 = 1 << 2;

/// [`Source::throttled_until`] of a source that stays throttled until it is released.
pub const UNTIL_RELEASED: u64 = u64::MAX;

/// The value of the source table. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Source {
    /// Guards all that follows but `dropped_total`, which is added to atomically.
    pub lock: SpinLock,
    /// [`ALLOWED`], [`MANUAL`], [`ESCALATED`].
    pub flags: u32,
    /// The [`crate::maps::Policy::generation`] that [`ALLOWED`] and `limits` were looked up under.
    pub generation: u32,
    /// Pings over the limit in the window that began at `over_since_ms`. Only counted where sources
    /// escalate.
    pub over: u32,
    /// Pings on open flows since the entry was made.
    pub pings_total: u64,
    /// Pings that were turned into pongs.
    pub defused_total: u64,
    /// Packets that were dropped.
    pub dropped_total: u64,
    /// When the latest ping came (coarse clock).
    pub last_ping: u64,
    /// Since when it is throttled; 0 when it is not.
    pub throttled_since: u64,
    /// Until when; [`UNTIL_RELEASED`] for an operator's decision without an end, 0 for never.
    pub throttled_until: u64,
    /// What holds for it.
    pub limits: Limits,
    /// Milliseconds, modulo 2³².
    pub over_since_ms: u32,
    pub _pad: u32,
    /// All its pings.
    pub window: RateWindow,
    /// The pings that were answered while it was throttled.
    pub spared: RateWindow,
}

/// What [`Source::charge`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// So many of the pings, the first ones, pass.
    pub passed: u32,
    /// So many of them are over the limit.
    pub over: u32,
    /// So many of those that pass do so for their connection's share alone.
    pub spared: u32,
    /// The segment they came in does not.
    pub dropped: bool,
    /// The source became throttled just now.
    pub throttled: bool,
    /// An earlier throttling had ended before these pings came.
    pub released: bool,
}

impl Source {
    /// Throttled at `now`, and not exempt.
    #[inline(always)]
    pub const fn is_throttled(&self, now: u64) -> bool {
        self.throttled_until > now && self.flags & ALLOWED == 0
    }

    /// What is done about its pings over the limit: one of [`action`].
    #[inline(always)]
    pub const fn action(&self) -> u8 {
        if self.flags & ALLOWED != 0 {
            action::OBSERVE
        } else if self.flags & ESCALATED != 0 && self.limits.action == action::DEFUSE {
            action::DROP
        } else {
            self.limits.action
        }
    }

    /// Log `pings` pings of one connection that came at `now`, and decide how many pass; then
    /// [`Source::flooded`] if any were over the limit.
    ///
    /// `share` is how many of them keep to the connection's own small share, which is answered
    /// while the source is throttled because of others: behind one address the neighbours'
    /// heartbeats live on. All shares together get at most one more limit's worth.
    #[inline(always)]
    pub fn charge(&mut self, now: u64, pings: u32, share: u32) -> Charged {
        let mut charged = self.judge(now, pings, share);
        if charged.over > 0 {
            charged.throttled = self.flooded(now, charged.over);
        }
        charged
    }

    /// The first half of [`Source::charge`]. A half each, because the kernel's verifier follows every
    /// way through the one for every way through the other, unless they are functions of their own.
    #[inline(always)]
    pub fn judge(&mut self, now: u64, pings: u32, share: u32) -> Charged {
        let now_ms = millis(now);
        let rate = self.limits.rate;
        let mut charged = Charged {
            passed: pings,
            over: 0,
            spared: 0,
            dropped: false,
            throttled: false,
            released: false,
        };
        let within = self.window.charge(now_ms, rate, pings);
        self.pings_total += pings as u64;
        self.last_ping = if now > self.last_ping { now } else { self.last_ping };
        if self.flags & ALLOWED != 0 {
            return charged;
        }
        let was_throttled = self.throttled_until > now;
        charged.over = pings - within;
        let kept = if was_throttled { 0 } else { within };
        let over = pings - kept;
        let share = share.saturating_sub(kept);
        let share = if share < over { share } else { over };
        let spared = match share {
            0 => 0,
            share => self.spared.charge(now_ms, rate, share),
        };
        // Whatever has two outcomes comes behind the loops, which the verifier would walk for each.
        if !was_throttled && self.throttled_since != 0 {
            charged.released = true;
            self.throttled_since = 0;
            self.flags &= !(MANUAL | ESCALATED);
        }
        let action = self.action();
        if over > 0 && action != action::OBSERVE {
            charged.passed = kept + spared;
            charged.spared = spared;
            charged.dropped = action == action::DROP && spared < over;
            // What is dropped is not defused: it never arrives.
            self.defused_total += if charged.dropped { 0 } else { (over - spared) as u64 };
        }
        charged
    }

    /// The second half: `over` pings over the limit came at `now`. Throttle, or go on throttling;
    /// whether it is new.
    #[inline(always)]
    pub fn flooded(&mut self, now: u64, over: u32) -> bool {
        const MS: u64 = 1_000_000;
        let new = self.throttled_until <= now;
        if new {
            self.throttled_since = now;
            self.flags &= !ESCALATED;
        }
        let least = self.throttled_since + self.limits.min_throttle_ms as u64 * MS;
        let until = now + self.limits.rate.window_ms as u64 * MS;
        let until = if until > least { until } else { least };
        if until > self.throttled_until {
            self.throttled_until = until;
        }
        if self.limits.escalate_after > 0 {
            self.escalate(millis(now), over);
        }
        new
    }

    /// Count `over` pings over the limit. The windows in which they are counted follow each other,
    /// the first of them begins with the first such ping.
    #[inline(always)]
    fn escalate(&mut self, now_ms: u32, over: u32) {
        if now_ms.wrapping_sub(self.over_since_ms) >= self.limits.rate.window_ms {
            self.over = 0;
            self.over_since_ms = now_ms;
        }
        self.over = self.over.saturating_add(over);
        if self.over > self.limits.escalate_after {
            self.flags |= ESCALATED;
        }
    }

    /// An operator's decision: throttled from `now` until `until`.
    #[inline(always)]
    pub fn throttle(&mut self, now: u64, until: u64) {
        if !self.is_throttled(now) {
            self.throttled_since = now;
        }
        self.throttled_until = until;
        self.flags |= MANUAL;
    }

    /// An operator's decision: free, with an empty log.
    #[inline(always)]
    pub fn release(&mut self) {
        self.throttled_since = 0;
        self.throttled_until = 0;
        self.flags &= !(MANUAL | ESCALATED);
        self.over = 0;
        self.window.clear();
        self.spared.clear();
    }
}

/// Milliseconds, modulo 2³², of a time in nanoseconds.
#[inline(always)]
pub const fn millis(ns: u64) -> u32 {
    (ns / 1_000_000) as u32
}
