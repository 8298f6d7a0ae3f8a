//! Limits of answered pings by source: the server's part of the guard's policy.

use std::{
    fmt,
    net::IpAddr,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use ws_guard_common::window::{Rate, RateError};

use crate::source::Prefixes;

/// Resolution of the clock that stamps pings, in milliseconds.
pub const CLOCK_STEP_MS: u32 = 1;

/// Limits of answered pings; 0 answers all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PingRates {
    /// Limit of a source, over all its connections.
    pub source: Rate,
    /// Limit of a connection.
    pub connection: Rate,
    /// Number of pings per connection that are answered whatever its source has used.
    pub share: u32,
}

impl PingRates {
    /// Create limits of pings in any `window_seconds`, per source and per connection.
    pub fn new(source: u32, connection: u32, window_seconds: u32) -> Result<PingRates, RateError> {
        let window_ms = window_seconds.saturating_mul(1000);
        let rate = |limit| Rate::new(limit, window_ms, CLOCK_STEP_MS);
        Ok(PingRates { source: rate(source)?, connection: rate(connection)?, share: 0 })
    }

    /// Set the share of every connection.
    pub fn with_share(self, share: u32) -> PingRates {
        PingRates { share, ..self }
    }
}

/// Definition of a source, and its limits.
#[derive(Clone)]
pub struct PingPolicy {
    pub prefixes: Prefixes,
    /// Default limits.
    pub rates: PingRates,
    /// Limits by network; the longest prefix decides.
    pub networks: JointPrefixMap<IpNet, PingRates>,
}

impl PingPolicy {
    /// Create a policy with the same limits for all.
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

/// Default policy: 30 pings of a source in any ten seconds.
impl Default for PingPolicy {
    fn default() -> PingPolicy {
        let source = Rate::new(30, 10_000, CLOCK_STEP_MS).unwrap_or_default();
        PingPolicy::new(PingRates { source, ..PingRates::default() })
    }
}

/// Policy in force, which may change while connections are open.
#[derive(Default)]
pub struct Pings(RwLock<PingPolicy>);

impl Pings {
    pub fn new(policy: PingPolicy) -> Pings {
        Pings(RwLock::new(policy))
    }

    /// Change the policy from now on.
    /// Counts are kept, and open connections stay with their source.
    pub fn set(&self, policy: PingPolicy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Return the source of an address.
    pub fn source_of(&self, address: IpAddr) -> IpNet {
        self.policy().prefixes.source_of(address)
    }

    /// Return the limits of a source.
    pub fn rates(&self, source: &IpNet) -> PingRates {
        self.policy().rates(source)
    }

    /// Return the limits of sources outside all networks.
    pub fn rates_of_all(&self) -> PingRates {
        self.policy().rates
    }

    fn policy(&self) -> RwLockReadGuard<'_, PingPolicy> {
        // It is replaced as a whole.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Output without the networks, of which there may be thousands.
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
