//! Budget of pings, computed the plain way: a batch's pings come in one window.
use ws_guard_common::{maps::action, replay::Budget};

/// Limits of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pings of a source.
    pub source: u32,
    /// Pings of a connection; 0 for no such limit.
    pub connection: u32,
    /// Pings that a connection may send whatever its source has used.
    pub share: u32,
    /// One of [`action`].
    pub action: u8,
    /// Bytes a second of a source with connections over the limit; 0 for no limit.
    pub pace: u32,
}

/// The remaining budget of a source.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Rest of its limit.
    left: u32,
    pub throttled: bool,
    /// Pings charged.
    pub pings: u64,
    /// Pings that passed.
    pub passed: u64,
}

impl Source {
    pub fn new(limits: &Limits) -> Source {
        Source { left: limits.source, throttled: false, pings: 0, passed: 0 }
    }
}

/// The remaining budget of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Rest of its own limit.
    left: u32,
    /// Rest of its share.
    share: u32,
    /// Set once it went over the limit.
    over: bool,
}

impl Connection {
    pub fn new(limits: &Limits) -> Connection {
        let left = if limits.connection == 0 { u32::MAX } else { limits.connection };
        Connection { left, share: limits.share, over: false }
    }
}

impl Connection {
    /// Check whether it went over the limit.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

/// Payment for the pings of one segment.
pub struct Purse<'a> {
    pub limits: &'a Limits,
    pub source: &'a mut Source,
    pub connection: &'a mut Connection,
}

impl Purse<'_> {
    /// Return how many of `pings` pings keep to the limit:
    /// the rest of the source's limit, or of the connection's share, whichever is more.
    fn kept(&self, pings: u32) -> u32 {
        pings.min(self.source.left.max(self.connection.share)).min(self.connection.left)
    }

    /// Pay for `pings` pings; return the number of them within the limit.
    fn pay(&mut self, pings: u32) -> u32 {
        let kept = self.kept(pings);
        self.source.throttled |= kept < pings;
        self.connection.over |= kept < pings;
        self.source.left -= pings.min(self.source.left);
        self.source.pings += u64::from(pings);
        self.connection.left -= pings.min(self.connection.left);
        self.connection.share -= pings.min(self.connection.share);
        kept
    }
}

impl Budget for Purse<'_> {
    fn room(&mut self) -> u32 {
        self.kept(u32::MAX)
    }

    fn charge(&mut self, pings: u32, passed: u32) {
        let kept = self.pay(pings);
        if self.limits.action != action::OBSERVE {
            assert_eq!(passed, kept);
        }
        self.source.passed += u64::from(passed);
    }

    fn is_over_limit(&mut self) -> bool {
        self.connection.over
    }

    fn is_exceeded_by(&mut self, pings: u32) -> bool {
        self.connection.over && self.source.left == 0 && self.connection.share < pings
    }

    fn charge_whole(&mut self, pings: u32) -> bool {
        if self.is_exceeded_by(pings) {
            return false;
        }
        let may = self.pay(pings) >= pings;
        self.source.passed += if may { u64::from(pings) } else { 0 };
        may
    }
}
