//! State of one source, an address or a prefix: the value of the source table.

use crate::{
    maps::{Limits, SpinLock, action},
    pace::Budget,
    verifier::forget,
    window::RateWindow,
};

/// [`Source::flags`]: the allowlist covers it; it is counted and never acted on.
pub const ALLOWED: u32 = 1 << 0;
/// [`Source::flags`]: throttled by an operator, not by its pings.
pub const MANUAL: u32 = 1 << 1;
/// [`Source::flags`]: it exceeded the limit so far that [`Limits::escalate_to`] applies until it is
/// released.
pub const ESCALATED: u32 = 1 << 2;
/// [`Source::flags`]: while it is throttled, everything of it is dropped.
pub const BANNED: u32 = 1 << 3;

/// [`Source::throttled_until`] of a source throttled until it is released.
pub const UNTIL_RELEASED: u64 = u64::MAX;

/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;

/// The value of the source table. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Source {
    /// Guards all other fields except `dropped_total`, which is added to atomically.
    pub lock: SpinLock,
    /// [`ALLOWED`], [`MANUAL`], [`ESCALATED`], [`BANNED`].
    pub flags: u32,
    /// [`crate::maps::Policy::generation`] of [`ALLOWED`] and `limits`.
    pub generation: u32,
    /// Pings over the limit in the window that began at `over_since_ms`. Only counted where sources
    /// escalate.
    pub over: u32,
    /// Pings on open flows since the entry was inserted.
    pub pings_total: u64,
    /// Pings that were turned into pongs.
    pub defused_total: u64,
    /// Dropped packets, without those that its open flows have yet to add
    /// ([`crate::flow::Flow::dropped`]).
    pub dropped_total: u64,
    /// Time of the latest ping (coarse clock).
    pub last_ping: u64,
    /// Time since which one of its connections is over the limit; 0 when none is.
    pub throttled_since: u64,
    /// End of that; [`UNTIL_RELEASED`] for an operator's decision without an end, 0 for never.
    pub throttled_until: u64,
    /// Its limits.
    pub limits: Limits,
    /// Milliseconds, modulo 2³².
    pub over_since_ms: u32,
    /// Budget shared by its paced connections.
    pub budget: Budget,
    /// Budget shared by their first windows.
    pub firsts: Budget,
    /// All its pings.
    pub window: RateWindow,
}

/// Pings of one connection in one segment, as they are charged to its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pings {
    /// Number of pings.
    pub count: u32,
    /// Number of them within the connection's share: those always pass.
    pub share: u32,
    /// Number of them within the connection's own limit; all where there is none.
    pub most: u32,
    /// Not 0: the connection's minimum throttle duration is not over. Only its share passes.
    pub held: u32,
}

/// Result of [`Source::charge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Number of pings within the limit, the first ones.
    pub kept: u32,
    /// Number of those within their connection's share only.
    pub spared: u32,
    /// Number of pings over the limit.
    pub over: u32,
    /// The source became throttled just now.
    pub throttled: bool,
    /// It was throttled before, and for another window if pings are over the limit: then
    /// [`Source::flooded`] has nothing to do, unless sources escalate.
    pub goes_on: bool,
    /// An earlier throttle ended before these pings.
    pub released: bool,
}

impl Source {
    /// Check whether it is throttled at `now`, and not exempt.
    #[inline(always)]
    pub const fn is_throttled(&self, now: u64) -> bool {
        self.throttled_until > now && self.flags & ALLOWED == 0
    }

    /// Check whether it is banned at `now`.
    #[inline(always)]
    pub const fn is_banned(&self, now: u64) -> bool {
        self.throttled_until > now && self.flags & (ALLOWED | BANNED) == BANNED
    }

    /// [`action`] for its connections over the limit.
    #[inline(always)]
    pub const fn action(&self) -> u8 {
        if self.flags & ALLOWED != 0 {
            return action::OBSERVE;
        }
        let escalates = self.flags & ESCALATED != 0
            && self.limits.action != action::OBSERVE
            && self.limits.escalate_to > self.limits.action;
        if escalates { self.limits.escalate_to } else { self.limits.action }
    }

    /// Check whether its connections over the limit are paced.
    #[inline(always)]
    pub const fn paces(&self) -> bool {
        self.action() == action::DEFUSE && self.limits.pace > 0
    }

    /// Log pings of one connection at `now`, and decide how many are within the limit; calls
    /// [`Source::flooded`] if any are over it.
    ///
    /// A ping is over the limit if and only if this window is full *and* its connection's share is
    /// used up. So a single connection gets exactly the limit; next to others behind the same
    /// address it gets at least its share; and all together get the limit and the shares of all but
    /// one.
    #[inline(always)]
    pub fn charge(&mut self, now: u64, pings: Pings) -> Charged {
        let mut charged = self.judge(now, pings);
        if charged.over > 0 {
            charged.throttled = self.flooded(now, charged.over);
        }
        charged
    }

    /// First half of [`Source::charge`].
    /// Two halves, because the kernel's verifier checks every combination of paths through both,
    /// unless they are functions of their own.
    #[inline(always)]
    pub fn judge(&mut self, now: u64, pings: Pings) -> Charged {
        let count = pings.count;
        let now_ms = millis(now);
        let within = forget(self.window.charge(now_ms, self.limits.rate, count), now_ms);
        self.pings_total += count as u64;
        self.last_ping = if now > self.last_ping { now } else { self.last_ping };
        // Branches come after the loops, or the verifier would walk those once for each outcome.
        let was_throttled = self.throttled_until > now;
        let held = pings.held != 0 || was_throttled && self.flags & MANUAL != 0;
        let within = if held { 0 } else { within };
        let kept = if within > pings.share { within } else { pings.share };
        let kept = if kept < pings.most { kept } else { pings.most };
        let kept = if self.flags & ALLOWED != 0 { count } else { kept };
        let over = count.wrapping_sub(kept);
        let until = now + self.limits.rate.window_ms as u64 * MS;
        if over > 0 && was_throttled && until > self.throttled_until {
            self.throttled_until = until;
        }
        let released = !was_throttled && self.throttled_since != 0;
        if released {
            self.throttled_since = 0;
            self.flags &= !(MANUAL | ESCALATED | BANNED);
        }
        // Dropped pings are not defused.
        let defuses = self.action() == action::DEFUSE;
        self.defused_total += if defuses { over as u64 } else { 0 };
        let spared = if self.flags & ALLOWED != 0 { 0 } else { kept.saturating_sub(within) };
        Charged { kept, spared, over, throttled: false, goes_on: was_throttled, released }
    }

    /// Second half: throttle, or continue to throttle, after `over` pings over the limit at `now`.
    /// Returns whether the throttle is new.
    #[inline(always)]
    pub fn flooded(&mut self, now: u64, over: u32) -> bool {
        let new = self.throttled_until <= now;
        if new {
            self.throttled_since = now;
            self.flags &= !(ESCALATED | BANNED);
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

    /// Count `over` pings over the limit, in successive windows; the first one begins with the
    /// first such ping.
    #[inline(always)]
    fn escalate(&mut self, now_ms: u32, over: u32) {
        if elapsed_ms(now_ms, self.over_since_ms) >= self.limits.rate.window_ms {
            self.over = 0;
            self.over_since_ms = now_ms;
        }
        self.over = self.over.saturating_add(over);
        if self.over > self.limits.escalate_after {
            self.flags |= ESCALATED;
        }
    }

    /// Throttle by an operator's decision, from `now` until `until`: its connections get only their
    /// shares, or are banned if `flag` is [`BANNED`] and not 0.
    #[inline(always)]
    pub fn throttle(&mut self, now: u64, until: u64, flag: u32) {
        if !self.is_throttled(now) {
            self.throttled_since = now;
        }
        self.throttled_until = until;
        self.flags = self.flags & !BANNED | MANUAL | flag;
    }

    /// Release by an operator's decision, with an empty log.
    #[inline(always)]
    pub fn release(&mut self) {
        self.throttled_since = 0;
        self.throttled_until = 0;
        self.flags &= !(MANUAL | ESCALATED | BANNED);
        self.over = 0;
        self.window.clear();
    }
}

/// Lead of another CPU's reading of the clock, at most; behind a larger one the 32 bits have wrapped.
const AHEAD_MS: u32 = 10_000;

/// Milliseconds from `since_ms` to `now_ms`, modulo 2³²; 0 where `since_ms` is slightly ahead.
///
/// Two CPUs may read the clock in one order and get a lock in the other.
#[inline(always)]
pub const fn elapsed_ms(now_ms: u32, since_ms: u32) -> u32 {
    let elapsed = now_ms.wrapping_sub(since_ms);
    if elapsed.wrapping_add(AHEAD_MS) < AHEAD_MS { 0 } else { elapsed }
}

/// Milliseconds, modulo 2³², of a time in nanoseconds.
#[inline(always)]
pub const fn millis(ns: u64) -> u32 {
    (ns / 1_000_000) as u32
}
