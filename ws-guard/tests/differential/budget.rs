//! How many pings may pass, computed the plain way: all of a batch's pings come in one window.
use ws_guard_common::{maps::action, replay::Budget};

/// A batch's limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pings of a source.
    pub source: u32,
    /// Pings of a connection; 0 for no such limit.
    pub connection: u32,
    /// Pings of a connection that are answered while its source is throttled.
    pub share: u32,
    /// One of [`action`].
    pub action: u8,
}

/// What a source has left.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Of its limit.
    left: u32,
    /// Of one more limit's worth, for shares.
    spare: u32,
    pub throttled: bool,
    /// Pings charged.
    pub pings: u64,
    /// Pings that passed.
    pub passed: u64,
}

impl Source {
    pub fn new(limits: &Limits) -> Source {
        let (left, spare) = (limits.source, limits.source);
        Source { left, spare, throttled: false, pings: 0, passed: 0 }
    }
}

/// What a connection has left.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Of its own limit.
    left: u32,
    /// Of its share.
    share: u32,
}

impl Connection {
    pub fn new(limits: &Limits) -> Connection {
        let left = if limits.connection == 0 { u32::MAX } else { limits.connection };
        Connection { left, share: limits.share }
    }
}

/// Pays for the pings of one segment.
pub struct Purse<'a> {
    pub limits: &'a Limits,
    pub source: &'a mut Source,
    pub connection: &'a mut Connection,
}

impl Purse<'_> {
    /// Of `pings` pings, how many the source's limit lets pass, and how many its spare.
    fn paid(&self, pings: u32) -> (u32, u32) {
        let kept = pings.min(self.source.left);
        let share = self.connection.share.saturating_sub(kept).min(pings - kept);
        (kept, share.min(self.source.spare))
    }
}

impl Budget for Purse<'_> {
    fn room(&mut self) -> u32 {
        let (kept, spared) = self.paid(u32::MAX);
        (kept + spared).min(self.connection.left)
    }

    fn charge(&mut self, pings: u32, passed: u32) {
        let (kept, spared) = self.paid(pings);
        if self.limits.action != action::OBSERVE {
            assert_eq!(passed, (kept + spared).min(self.connection.left));
        }
        self.source.throttled |= pings > self.source.left;
        self.source.left -= kept;
        self.source.spare -= spared;
        self.source.pings += u64::from(pings);
        self.source.passed += u64::from(passed);
        self.connection.left -= pings.min(self.connection.left);
        self.connection.share -= pings.min(self.connection.share);
    }

    fn is_throttled(&mut self) -> bool {
        self.source.throttled
    }

    fn charge_whole(&mut self, pings: u32) -> bool {
        let fits_share = pings == 1 && self.connection.share > 0;
        if self.source.throttled && !fits_share {
            return false;
        }
        let fits = pings <= self.connection.left;
        let (kept, spared) = self.paid(pings);
        self.connection.left -= pings.min(self.connection.left);
        self.connection.share -= pings.min(self.connection.share);
        if !fits {
            return false;
        }
        let spared = if fits_share { spared } else { 0 };
        self.source.throttled |= pings > self.source.left;
        self.source.left -= kept;
        self.source.spare -= spared;
        self.source.pings += u64::from(pings);
        let may = kept + spared == pings;
        self.source.passed += if may { u64::from(pings) } else { 0 };
        may
    }
}
