//! Limits of answered pings, and the sources that share them: the server's part of the guard's policy.

use std::{
    fmt,
    net::IpAddr,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use ws_guard_common::window::{Rate, RateError};

use crate::source::Prefixes;

/// Steps of the clock that stamps pings, in milliseconds.
pub const CLOCK_STEP_MS: u32 = 1;

/// Pings that are answered; a limit of 0 answers all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PingRates {
    /// Those of a source, over all its connections.
    pub source: Rate,
    /// Those of a connection.
    pub connection: Rate,
    /// Those that every connection has answered in any window, whatever its source has used.
    pub share: u32,
}

impl PingRates {
    /// Maximum of pings in any `window_seconds`, of a source and of a connection.
    pub fn new(source: u32, connection: u32, window_seconds: u32) -> Result<PingRates, RateError> {
        let window_ms = window_seconds.saturating_mul(1000);
        let rate = |limit| Rate::new(limit, window_ms, CLOCK_STEP_MS);
        Ok(PingRates { source: rate(source)?, connection: rate(connection)?, share: 0 })
    }

    /// With such a share of every connection.
    pub fn with_share(self, share: u32) -> PingRates {
        PingRates { share, ..self }
    }
}

/// What makes a source, and the limits of each.
#[derive(Clone)]
pub struct PingPolicy {
    pub prefixes: Prefixes,
    /// Those of everybody.
    pub rates: PingRates,
    /// Those of networks with limits of their own; the longest prefix decides.
    pub networks: JointPrefixMap<IpNet, PingRates>,
}

impl PingPolicy {
    /// The same limits for everybody.
    pub fn new(rates: PingRates) -> PingPolicy {
        let prefixes = Prefixes { v4: 32, v6: 64 };
        PingPolicy { prefixes, rates, networks: JointPrefixMap::new() }
    }

    fn rates(&self, source: &IpNet) -> PingRates {
        // As the kernel looks it up: by the source's first address.
        let own = self.networks.get_lpm(&source.network().into()).map(|(_, rates)| *rates);
        own.unwrap_or(self.rates)
    }
}

/// 30 pings of a source in any ten seconds.
impl Default for PingPolicy {
    fn default() -> PingPolicy {
        let source = Rate::new(30, 10_000, CLOCK_STEP_MS).unwrap_or_default();
        PingPolicy::new(PingRates { source, ..PingRates::default() })
    }
}

/// The policy in force, which may change while connections are open.
#[derive(Default)]
pub struct Pings(RwLock<PingPolicy>);

impl Pings {
    pub fn new(policy: PingPolicy) -> Pings {
        Pings(RwLock::new(policy))
    }

    /// Change the limit from now on. What was counted stays counted, and connections that are open
    /// stay with their source.
    pub fn set(&self, policy: PingPolicy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// The source that an address belongs to.
    pub fn source_of(&self, address: IpAddr) -> IpNet {
        self.policy().prefixes.source_of(address)
    }

    /// What holds for a source.
    pub fn rates(&self, source: &IpNet) -> PingRates {
        self.policy().rates(source)
    }

    /// What holds for everybody that no network covers.
    pub fn rates_of_all(&self) -> PingRates {
        self.policy().rates
    }

    fn policy(&self) -> RwLockReadGuard<'_, PingPolicy> {
        // It is replaced as a whole.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the networks, which may be thousands.
impl fmt::Debug for Pings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policy();
        f.debug_struct("Pings")
            .field("prefixes", &policy.prefixes)
            .field("rates", &policy.rates)
            .field("networks", &policy.networks.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides_and_a_change_holds_at_once() {
        let rates = |limit| PingRates::new(limit, 0, 10).unwrap();
        let network = |text: &str| text.parse::<IpNet>().unwrap();
        let mut policy = PingPolicy::new(rates(30));
        for (text, limit) in [("10.0.0.0/8", 0), ("10.7.0.0/16", 5), ("fd77::/48", 7)] {
            policy.networks.insert(network(text), rates(limit));
        }
        let pings = Pings::new(policy);
        let limit = |text: &str| {
            let source = pings.source_of(text.parse().unwrap());
            pings.rates(&source).source.limit
        };
        let asked = ["192.0.2.1", "10.1.1.1", "10.7.1.1", "::ffff:10.7.1.1", "fd77::1", "fd78::1"];
        assert_eq!(asked.map(limit), [30, 0, 5, 5, 7, 30]);
        pings
            .set(PingPolicy { prefixes: Prefixes { v4: 24, v6: 56 }, ..PingPolicy::new(rates(3)) });
        assert_eq!(asked.map(limit), [3; 6]);
        assert_eq!(pings.source_of("10.1.1.1".parse().unwrap()), network("10.1.1.0/24"));
    }
}
