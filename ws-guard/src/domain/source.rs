//! Source, as in `sources` and `throttled`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use serde::{Deserialize, Serialize};
use ws_guard_common::{
    maps::{Limits, Rule, SourceKey, own},
    source::{BANNED, ESCALATED, MANUAL, Source, UNTIL_RELEASED, millis},
};
use ws_guard_server::source::Prefixes;

use super::{
    address::{prefixes_of, source_text},
    clock::{Clock, Timestamp},
    open::OpenFlows,
};
use crate::guard::PolicySet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    Ok,
    Throttled,
    /// On the allowlist: counted, never acted on.
    Allowed,
}

impl SourceState {
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Ok => "ok",
            SourceState::Throttled => "throttled",
            SourceState::Allowed => "allowed",
        }
    }
}

/// Source in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceView {
    /// Address, or prefix in CIDR notation.
    pub source: String,
    pub state: SourceState,
    /// Pings in the current window.
    pub pings_in_window: u32,
    pub pings_total: u64,
    /// Pings turned into pongs.
    pub defused_total: u64,
    /// Packets dropped.
    pub dropped_total: u64,
    /// Number of open connections.
    pub connections: u32,
    /// Number of those whose receive window is held now.
    #[serde(default)]
    pub paced: u32,
    pub last_ping: Option<Timestamp>,
    pub throttled_since: Option<Timestamp>,
    /// Null also for a throttle without an end.
    pub throttled_until: Option<Timestamp>,
    /// Set if an operator throttled it, not its pings.
    pub manual: bool,
    /// Set if it exceeded the limit so far that `escalate-to` applies.
    pub escalated: bool,
    /// Set if everything from it is dropped, new connections too.
    pub banned: bool,
    /// Port of these pings, if it has its own settings.
    /// Null for all other ports, which are counted together.
    pub port: Option<u16>,
}

#[cfg(test)]
impl SourceView {
    /// Create a source within its limit, for tests.
    pub fn sample(source: &str, pings_total: u64) -> SourceView {
        SourceView {
            source: source.into(),
            state: SourceState::Ok,
            pings_in_window: 2,
            pings_total,
            defused_total: 0,
            dropped_total: 0,
            connections: 1,
            paced: 0,
            last_ping: None,
            throttled_since: None,
            throttled_until: None,
            manual: false,
            escalated: false,
            banned: false,
            port: None,
        }
    }
}

/// Rules by network, for longest-prefix matches.
#[derive(Clone, Debug, Default)]
pub struct Rules(JointPrefixMap<IpNet, Rule>);

impl Rules {
    pub fn new(rules: impl IntoIterator<Item = (IpAddr, u8, Rule)>) -> Rules {
        let network = |(address, length, rule)| Some((IpNet::new(address, length).ok()?, rule));
        Rules(rules.into_iter().filter_map(network).collect())
    }

    /// Return the rule for an address.
    fn longest(&self, address: IpAddr) -> Option<&Rule> {
        self.0.get_lpm(&address.into()).map(|(_, rule)| rule)
    }

    /// Return the rule for a source.
    /// A proxy's rule does not apply to a connection of it without a known client.
    fn of(&self, key: &SourceKey) -> Option<&Rule> {
        if key.port() == 0 { self.longest(key.address.into()) } else { None }
    }

    /// Check whether the allowlist covers an address.
    pub fn allow(&self, address: IpAddr) -> bool {
        self.longest(address).is_some_and(|rule| rule.flags & Rule::ALLOW != 0)
    }
}

/// Context of sources' views: one reading of policies, rules and clock for all.
#[derive(Clone, Debug)]
pub struct SourceViews {
    pub policies: PolicySet,
    pub rules: Rules,
    pub clock: Clock,
}

impl SourceViews {
    /// Return the guard's current treatment of a source.
    pub fn state(&self, key: &SourceKey, source: &Source) -> SourceState {
        if self.rules.of(key).is_some_and(|rule| rule.flags & Rule::ALLOW != 0) {
            SourceState::Allowed
        } else if source.throttled_until > self.clock.now_ns {
            SourceState::Throttled
        } else {
            SourceState::Ok
        }
    }

    /// Return the group sizes of ping logs, by policy and by rule with a limit.
    pub fn groupings(&self) -> (Vec<u32>, BTreeMap<IpNet, u32>) {
        let limited = self.rules.0.iter().filter(|(_, rule)| rule.flags & own::LIMIT != 0);
        (
            self.policies.scopes.iter().map(|policy| policy.rate.shift).collect(),
            limited.map(|(network, rule)| (network, rule.limits.rate.shift)).collect(),
        )
    }

    /// Return the limits of a source from its next ping on.
    pub fn limits(&self, key: &SourceKey) -> Limits {
        let policy = self.policies.scopes.get(key.scope() as usize).copied().unwrap_or_default();
        let limits = Limits::of(&policy);
        self.rules.of(key).map_or(limits, |rule| limits.with(rule))
    }

    /// Create the view of a source; `open` holds the open connections of all sources.
    pub fn view(&self, key: &SourceKey, source: &Source, open: &OpenFlows) -> SourceView {
        let open = open.of(key);
        let state = self.state(key, source);
        let throttled = state == SourceState::Throttled;
        let at = |ns| self.clock.at(ns);
        let end = source.throttled_until;
        SourceView {
            source: source_text(&self.prefixes(), key),
            state,
            pings_in_window: source.window.count(millis(self.clock.now_ns), self.limits(key).rate),
            pings_total: source.pings_total,
            defused_total: source.defused_total,
            dropped_total: source.dropped_total.saturating_add(open.dropped),
            connections: open.connections,
            paced: open.paced,
            last_ping: at(source.last_ping),
            throttled_since: at(source.throttled_since).filter(|_| throttled),
            throttled_until: at(end).filter(|_| throttled && end != UNTIL_RELEASED),
            manual: throttled && source.flags & MANUAL != 0,
            escalated: throttled && source.flags & ESCALATED != 0,
            banned: throttled && source.flags & BANNED != 0,
            port: self.policies.port_of(key.scope()),
        }
    }

    pub fn prefixes(&self) -> Prefixes {
        prefixes_of(&self.policies.scopes.first().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ws_guard_common::source::Pings;

    use super::*;
    use crate::domain::policy::PolicySettings;

    const NOW: u64 = 100_000_000_000;

    fn views(rules: &[(&str, u8, u32)]) -> SourceViews {
        let rule = |(address, length, flags): &(&str, u8, u32)| {
            (address.parse().unwrap(), *length, Rule { flags: *flags, ..Rule::default() })
        };
        SourceViews {
            policies: PolicySettings::default().to_kernel(4).unwrap(),
            rules: Rules::new(rules.iter().map(rule)),
            clock: Clock {
                now_ns: NOW,
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            },
        }
    }

    fn key(text: &str) -> SourceKey {
        SourceKey { address: text.parse::<IpAddr>().unwrap().into(), scope: 0 }
    }

    /// Create a source that sent `pings` pings `age_ms` ago.
    fn source(views: &SourceViews, pings: u32, age_ms: u64) -> Source {
        let limits = Limits::of(&views.policies.scopes[0]);
        let mut source = Source { limits, ..Source::default() };
        let pings = Pings { count: pings, most: pings, ..Pings::default() };
        source.charge(NOW - age_ms * 1_000_000, pings);
        source
    }

    fn view(views: &SourceViews, text: &str, source: &Source) -> SourceView {
        views.view(&key(text), source, &OpenFlows::default())
    }

    #[test]
    fn within_the_limit_is_ok() {
        let views = views(&[]);
        let view = view(&views, "10.77.0.1", &source(&views, 30, 5_000));
        assert_eq!((view.state, view.pings_in_window, view.pings_total), (SourceState::Ok, 30, 30));
        assert_eq!((view.throttled_since, view.throttled_until), (None, None));
        assert_eq!(view.last_ping.unwrap().to_string(), "2023-11-14T22:13:15.000Z");
    }

    #[test]
    fn over_the_limit_is_throttled_for_a_window() {
        let views = views(&[]);
        let view = view(&views, "fd77::", &source(&views, 31, 4_000));
        assert_eq!((view.source.as_str(), view.state), ("fd77::/64", SourceState::Throttled));
        assert_eq!(view.defused_total, 1);
        assert!(!view.manual);
        assert_eq!(view.throttled_since.unwrap().to_string(), "2023-11-14T22:13:16.000Z");
        // One window, and the clock's step of 4 ms, in whole milliseconds.
        assert_eq!(view.throttled_until.unwrap().to_string(), "2023-11-14T22:13:26.005Z");
    }

    #[test]
    fn a_throttling_that_ended_shows_no_more() {
        let views = views(&[]);
        let view = view(&views, "10.77.0.1", &source(&views, 31, 11_000));
        assert_eq!((view.state, view.pings_in_window), (SourceState::Ok, 0));
        assert_eq!((view.throttled_since, view.throttled_until), (None, None));
    }

    #[test]
    fn an_operators_throttling_has_no_end() {
        let views = views(&[]);
        let mut source = Source::default();
        source.throttle(NOW - 1, UNTIL_RELEASED, 0);
        let by_hand = view(&views, "10.77.0.1", &source);
        assert_eq!((by_hand.state, by_hand.manual), (SourceState::Throttled, true));
        assert!(by_hand.throttled_since.is_some() && by_hand.throttled_until.is_none());
        assert_eq!((by_hand.last_ping, by_hand.banned), (None, false));
        source.throttle(NOW - 1, UNTIL_RELEASED, BANNED);
        assert!(view(&views, "10.77.0.1", &source).banned);
    }

    #[test]
    fn the_allowlist_decides_by_its_longest_prefix() {
        let views = views(&[("10.0.0.0", 8, Rule::ALLOW), ("10.77.0.0", 16, 0)]);
        let state = |text| view(&views, text, &source(&views, 31, 0)).state;
        assert_eq!(state("10.1.1.1"), SourceState::Allowed);
        assert_eq!(state("10.77.0.1"), SourceState::Throttled);
    }

    #[test]
    fn an_exempt_proxy_does_not_exempt_its_clients() {
        let views = views(&[("10.0.0.0", 8, Rule::ALLOW)]);
        let address = "10.1.1.1".parse::<IpAddr>().unwrap().into();
        let key = SourceKey { address, scope: SourceKey::of_connection(0, 4711) };
        let state = views.state(&key, &source(&views, 31, 0));
        assert_eq!(state, SourceState::Throttled);
    }

    #[test]
    fn json_has_the_documented_fields() {
        let views = views(&[]);
        let view = view(&views, "10.77.0.1", &source(&views, 1, 0));
        let json = serde_json::to_value(&view).unwrap();
        for field in [
            "source",
            "state",
            "pings_in_window",
            "pings_total",
            "defused_total",
            "dropped_total",
            "connections",
            "banned",
            "last_ping",
            "throttled_since",
            "throttled_until",
            "port",
        ] {
            assert!(json.get(field).is_some(), "{field} is missing in {json}");
        }
        assert_eq!(serde_json::from_value::<SourceView>(json).unwrap(), view);
    }
}
