//! One source, an address or a prefix that pings: the value of the source table.

use crate::{
    maps::{Policy, SpinLock, action},
    window::RateWindow,
};

/// [`Source::flags`]: the allowlist covers it; it is counted and never acted on.
pub const ALLOWED: u32 = 1 << 0;
/// [`Source::flags`]: throttled by an operator, not by its pings.
pub const MANUAL: u32 = 1 << 1;

/// [`Source::throttled_until`] of a source that stays throttled until it is released.
pub const UNTIL_RELEASED: u64 = u64::MAX;

/// The value of the source table. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Source {
    /// Guards all that follows but `dropped_total`, which is added to atomically.
    pub lock: SpinLock,
    /// [`ALLOWED`], [`MANUAL`].
    pub flags: u32,
    /// The [`Policy::rules_generation`] that [`ALLOWED`] was looked up under.
    pub rules_generation: u32,
    pub _pad: u32,
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

    /// Log `pings` pings of one connection that came at `now`, and decide how many pass.
    ///
    /// `share` is how many of them keep to the connection's own small share, which is answered
    /// while the source is throttled because of others: behind one address the neighbours'
    /// heartbeats live on. All shares together get at most one more limit's worth.
    #[inline(always)]
    pub fn charge(&mut self, now: u64, policy: &Policy, pings: u32, share: u32) -> Charged {
        let now_ms = millis(now);
        let mut charged = Charged { passed: pings, throttled: false, released: false };
        let within = self.window.charge(now_ms, policy.rate, pings);
        self.pings_total += pings as u64;
        self.last_ping = if now > self.last_ping { now } else { self.last_ping };
        if self.flags & ALLOWED != 0 {
            return charged;
        }
        let was_throttled = self.throttled_until > now;
        if !was_throttled && self.throttled_since != 0 {
            charged.released = true;
            self.throttled_since = 0;
            self.flags &= !MANUAL;
        }
        if within < pings {
            let until = now + policy.rate.window_ms as u64 * 1_000_000;
            if until > self.throttled_until {
                self.throttled_until = until;
            }
            if !was_throttled {
                self.throttled_since = now;
                charged.throttled = true;
            }
        }
        let kept = if was_throttled { 0 } else { within };
        let over = pings - kept;
        if over > 0 && policy.action != action::OBSERVE {
            let share = share.saturating_sub(kept);
            let share = if share < over { share } else { over };
            let spared = match share {
                0 => 0,
                share => self.spared.charge(now_ms, policy.rate, share),
            };
            charged.passed = kept + spared;
            self.defused_total += (over - spared) as u64;
        }
        charged
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
        self.flags &= !MANUAL;
        self.window.clear();
        self.spared.clear();
    }
}

/// Milliseconds, modulo 2³², of a time in nanoseconds.
#[inline(always)]
pub const fn millis(ns: u64) -> u32 {
    (ns / 1_000_000) as u32
}
