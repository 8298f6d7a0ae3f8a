//! The policy as people set it, and its shape in the kernel.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use ws_guard_common::{
    flood::{CLASSES, Class},
    maps::{self, Address, Limits, Policy, Rule, SCOPES, own},
    window::{Rate, RateError},
};

use super::{
    address::Prefixes,
    overrides::{NetworkPolicy, Overrides, PortPolicy, parse_network, parse_port},
    records::RecordBytes,
    setting::{Setting, store, whole, word},
};
use crate::guard::{NetworkRule, PolicySet};

/// What an over-limit ping leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Observe,
    #[default]
    Defuse,
    Drop,
}

impl Action {
    pub const WORDS: [(&'static str, Action); 3] =
        [("observe", Action::Observe), ("defuse", Action::Defuse), ("drop", Action::Drop)];

    const fn to_kernel(self) -> u8 {
        match self {
            Action::Observe => maps::action::OBSERVE,
            Action::Defuse => maps::action::DEFUSE,
            Action::Drop => maps::action::DROP,
        }
    }

    const fn from_kernel(action: u8) -> Action {
        match action {
            maps::action::OBSERVE => Action::Observe,
            maps::action::DEFUSE => Action::Defuse,
            _ => Action::Drop,
        }
    }

    pub const fn name(self) -> &'static str {
        maps::action::name(self.to_kernel())
    }
}

/// What a full table does with newcomers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// Let them through untracked.
    #[default]
    Open,
    /// Refuse the connection, or treat the source's pings as over the limit.
    Closed,
}

impl OnFull {
    const WORDS: [(&'static str, OnFull); 2] = [("open", OnFull::Open), ("closed", OnFull::Closed)];

    const fn name(self) -> &'static str {
        match self {
            OnFull::Open => "open",
            OnFull::Closed => "closed",
        }
    }

    const fn flag(self, flag: u8) -> u8 {
        match self {
            OnFull::Open => 0,
            OnFull::Closed => flag,
        }
    }

    const fn from_flag(set: bool) -> OnFull {
        if set { OnFull::Closed } else { OnFull::Open }
    }
}

/// What becomes of packets that may carry TCP to a protected port and cannot be followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fragments {
    #[default]
    Drop,
    /// Uncounted, and a way around every limit.
    Pass,
}

impl Fragments {
    const WORDS: [(&'static str, Fragments); 2] =
        [("drop", Fragments::Drop), ("pass", Fragments::Pass)];

    const fn name(self) -> &'static str {
        match self {
            Fragments::Drop => "drop",
            Fragments::Pass => "pass",
        }
    }

    const fn flag(self) -> u8 {
        match self {
            Fragments::Drop => 0,
            Fragments::Pass => maps::UNREADABLE_PASSES,
        }
    }

    const fn from_flags(flags: u8) -> Fragments {
        if flags & maps::UNREADABLE_PASSES != 0 { Fragments::Pass } else { Fragments::Drop }
    }
}

/// Everything that may change while packets flow. Field names are those of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    pub action: Action,
    /// Pings a source may send in any window.
    pub max_ping_rate: u32,
    pub window_seconds: u32,
    /// How long a throttling lasts at the least; 0: as long as the window.
    pub min_throttle_seconds: u32,
    /// Pings over the limit in a window after which defuse becomes drop; 0: never.
    pub escalate_after: u32,
    /// Pings a connection may send in any window; 0: no such limit.
    pub max_ping_rate_per_connection: u32,
    /// Pings a window that each connection of a throttled source is still answered.
    pub neighbour_share: u32,
    /// Frames of other classes that a source may send in any window; 0: no such limit.
    pub max_pong_rate: u32,
    pub max_empty_fragment_rate: u32,
    pub max_tiny_frame_rate: u32,
    /// Longest payload of a tiny data frame, in bytes.
    pub tiny_frame_bytes: u32,
    pub max_close_rate: u32,
    /// The ports speak TLS: records are followed, not frames.
    pub tls: bool,
    /// Small TLS records that a source may send in any window; 0: no such limit.
    pub max_record_rate: u32,
    /// Which records are small.
    pub record_bytes: RecordBytes,
    pub ipv4_prefix: u8,
    pub ipv6_prefix: u8,
    pub on_full_flows: OnFull,
    pub on_full_sources: OnFull,
    pub fragments: Fragments,
    /// Protected TCP ports of the server side.
    pub ports: Vec<u16>,
    /// Those of them with settings of their own, in the order of their numbers.
    pub port_policies: Vec<PortPolicy>,
    /// Networks with settings of their own.
    pub cidrs: Vec<NetworkPolicy>,
}

impl Default for PolicySettings {
    fn default() -> PolicySettings {
        PolicySettings {
            action: Action::default(),
            max_ping_rate: 30,
            window_seconds: 10,
            min_throttle_seconds: 0,
            escalate_after: 0,
            max_ping_rate_per_connection: 0,
            neighbour_share: 2,
            max_pong_rate: 0,
            max_empty_fragment_rate: 0,
            max_tiny_frame_rate: 0,
            tiny_frame_bytes: 8,
            max_close_rate: 0,
            tls: false,
            max_record_rate: 300,
            record_bytes: RecordBytes::default(),
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            on_full_flows: OnFull::default(),
            on_full_sources: OnFull::default(),
            fragments: Fragments::default(),
            ports: Vec::new(),
            port_policies: Vec::new(),
            cidrs: Vec::new(),
        }
    }
}

/// So many ports may have settings of their own.
pub const MOST_PORT_POLICIES: usize = SCOPES as usize - 1;

impl PolicySettings {
    /// The kernel's form of all but the networks, for which see [`PolicySettings::rule`].
    pub fn to_kernel(&self, clock_step_ms: u32) -> Result<PolicySet, RateError> {
        let mut scopes = vec![self.scope(0, clock_step_ms)?];
        let mut ports: Vec<(u16, u32)> = self.ports.iter().map(|port| (*port, 0)).collect();
        for (policy, scope) in self.port_policies.iter().zip(1..SCOPES) {
            let bits = policy.own.bits();
            scopes.push(policy.own.over(self).scope(bits, clock_step_ms)?);
            ports.retain(|(port, _)| *port != policy.port);
            ports.push((policy.port, scope));
        }
        ports.sort_unstable();
        Ok(PolicySet { scopes, ports })
    }

    /// The policy of one scope, which has `own` settings of its own.
    fn scope(&self, own: u32, clock_step_ms: u32) -> Result<Policy, RateError> {
        let window_ms = self.window_seconds.saturating_mul(1000);
        let rate = |limit| Rate::new(limit, window_ms, clock_step_ms);
        let classes = self.class_limits();
        // Frames and records are never both to be seen.
        let of_records = |class: usize| class == Class::SmallRecord as usize;
        let mut limits = classes.iter().enumerate();
        let limits_classes =
            limits.any(|(class, limit)| *limit > 0 && of_records(class) == self.tls);
        let [a, b, c, d, e] = classes;
        Ok(Policy {
            rate: rate(self.max_ping_rate)?,
            connection_rate: rate(self.max_ping_rate_per_connection)?,
            share: self.neighbour_share,
            action: self.action.to_kernel(),
            flags: self.on_full_flows.flag(maps::FLOWS_FAIL_CLOSED)
                | self.on_full_sources.flag(maps::SOURCES_FAIL_CLOSED)
                | self.fragments.flag()
                | if limits_classes { maps::LIMITS_CLASSES } else { 0 }
                | if self.tls { maps::TLS } else { 0 },
            class_limits: [rate(a)?, rate(b)?, rate(c)?, rate(d)?, rate(e)?],
            record_min: self.record_bytes.min,
            record_max: self.record_bytes.max,
            tiny_bytes: self.tiny_frame_bytes,
            mask_v4: Address::mask(96 + u32::from(self.ipv4_prefix)),
            mask_v6: Address::mask(u32::from(self.ipv6_prefix)),
            min_throttle_ms: self.min_throttle_seconds.saturating_mul(1000),
            escalate_after: self.escalate_after,
            own,
            ..Policy::default()
        })
    }

    /// The limits of other frames, in the order of [`Class`].
    fn class_limits(&self) -> [u32; CLASSES] {
        let mut limits = [0; CLASSES];
        for (class, limit) in [
            (Class::Pong, self.max_pong_rate),
            (Class::EmptyFragment, self.max_empty_fragment_rate),
            (Class::TinyData, self.max_tiny_frame_rate),
            (Class::Close, self.max_close_rate),
            (Class::SmallRecord, self.max_record_rate),
        ] {
            limits[class as usize] = limit;
        }
        limits
    }

    /// The rule for a network with settings of its own.
    pub fn rule(own: &Overrides, clock_step_ms: u32) -> Result<Rule, RateError> {
        let policy = own.over(&PolicySettings::default()).scope(0, clock_step_ms)?;
        Ok(Rule { flags: own.bits(), limits: Limits::of(&policy) })
    }

    /// What is in force, read back. The kernel's windows are shorter than those set by less than a
    /// second: by the step of its clock.
    pub fn from_kernel(set: &PolicySet, rules: &[NetworkRule]) -> PolicySettings {
        let first = set.scopes.first().copied().unwrap_or_default();
        let own = |(port, scope): &(u16, u32)| {
            let policy = set.scopes.get(*scope as usize).filter(|_| *scope > 0)?;
            Some(PortPolicy {
                port: *port,
                own: Overrides::of(policy.own, &PolicySettings::of_scope(policy)),
            })
        };
        PolicySettings {
            ports: set.ports.iter().map(|(port, _)| *port).collect(),
            port_policies: set.ports.iter().filter_map(own).collect(),
            cidrs: rules.iter().filter_map(network_policy).collect(),
            ..PolicySettings::of_scope(&first)
        }
    }

    fn of_scope(policy: &Policy) -> PolicySettings {
        let prefixes = Prefixes::of(policy);
        let class = |class: Class| policy.class_limits[class as usize].limit;
        PolicySettings {
            action: Action::from_kernel(policy.action),
            max_ping_rate: policy.rate.limit,
            window_seconds: policy.rate.window_ms.div_ceil(1000),
            min_throttle_seconds: policy.min_throttle_ms / 1000,
            escalate_after: policy.escalate_after,
            max_ping_rate_per_connection: policy.connection_rate.limit,
            neighbour_share: policy.share,
            max_pong_rate: class(Class::Pong),
            max_empty_fragment_rate: class(Class::EmptyFragment),
            max_tiny_frame_rate: class(Class::TinyData),
            tiny_frame_bytes: policy.tiny_bytes,
            max_close_rate: class(Class::Close),
            tls: policy.flags & maps::TLS != 0,
            max_record_rate: class(Class::SmallRecord),
            record_bytes: RecordBytes { min: policy.record_min, max: policy.record_max },
            ipv4_prefix: prefixes.v4,
            ipv6_prefix: prefixes.v6,
            on_full_flows: OnFull::from_flag(policy.flags & maps::FLOWS_FAIL_CLOSED != 0),
            on_full_sources: OnFull::from_flag(policy.flags & maps::SOURCES_FAIL_CLOSED != 0),
            fragments: Fragments::from_flags(policy.flags),
            ..PolicySettings::default()
        }
    }

    /// Protect a port, with settings of its own or without any.
    fn add_port(&mut self, port: u16, own: Overrides) -> Result<(), String> {
        if !self.ports.contains(&port) {
            self.ports.push(port);
            self.ports.sort_unstable();
        }
        if !own.is_empty() {
            self.port_policies.retain(|policy| policy.port != port);
            self.port_policies.push(PortPolicy { port, own });
            self.port_policies.sort_unstable_by_key(|policy| policy.port);
        }
        if self.port_policies.len() > MOST_PORT_POLICIES {
            return Err(format!(
                "port {port} is one too many with settings of its own: at most \
                 {MOST_PORT_POLICIES} ports can have some"
            ));
        }
        Ok(())
    }

    /// The same for a network.
    pub fn add_cidr(&mut self, network: NetworkPolicy) {
        self.cidrs.retain(|other| other.cidr != network.cidr);
        self.cidrs.push(network);
        self.cidrs.sort_unstable_by_key(|network| network.cidr);
    }

    /// The settings that differ, as `name: old → new`.
    pub fn differences(&self, new: &PolicySettings) -> Vec<String> {
        let differs = |setting: &&Setting<_>| (setting.get)(self) != (setting.get)(new);
        let text = |setting: &Setting<_>| {
            let (old, new) = ((setting.get)(self), (setting.get)(new));
            format!("{}: {} → {}", setting.name, old.join(","), new.join(","))
        };
        POLICY.iter().filter(differs).map(text).collect()
    }

    /// Take over what changed from `before` to `after`, and leave the rest as it is. Networks are
    /// kept as rules, each with its origin, and are no matter of this.
    pub fn merge(&mut self, before: &PolicySettings, after: &PolicySettings) {
        for setting in POLICY.iter().filter(|setting| setting.name != "cidr") {
            if (setting.get)(before) != (setting.get)(after) {
                setting.copy(after, self);
            }
        }
    }
}

/// The settings that a rule has, if it has any.
fn network_policy((address, length, rule): &NetworkRule) -> Option<NetworkPolicy> {
    let limits = &rule.limits;
    let policy = Policy {
        rate: limits.rate,
        action: limits.action,
        min_throttle_ms: limits.min_throttle_ms,
        escalate_after: limits.escalate_after,
        ..Policy::default()
    };
    let networks = own::LIMIT | own::WINDOW | own::ACTION | own::MIN_THROTTLE | own::ESCALATE;
    let own = Overrides::of(rule.flags & networks, &PolicySettings::of_scope(&policy));
    let cidr = IpNet::new(*address, *length).ok().filter(|_| !own.is_empty())?;
    Some(NetworkPolicy { cidr, own })
}

/// One text, as `Setting::get` wants it.
fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

/// A setting with one value.
const fn single(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(&mut PolicySettings, &str) -> Result<(), String>,
    get: fn(&PolicySettings) -> Vec<String>,
) -> Setting<PolicySettings> {
    Setting { name, value, help, many: false, seed: None, set, get, clear: |_| {} }
}

/// The seed's own variable beside `WS_GUARD_…`.
const fn seeded(
    mut setting: Setting<PolicySettings>,
    variable: &'static str,
) -> Setting<PolicySettings> {
    setting.seed = Some(variable);
    setting
}

/// Every setting of a policy: flags of `run` and `policy set`, keys of the file, fields of the API.
pub static POLICY: [Setting<PolicySettings>; 22] = [
    Setting {
        name: "port",
        value: "PORT[/tls]",
        help: "TCP port of the WebSocket server to protect; 443/tls where it speaks TLS; with settings of its own as '8443 max-ping-rate=5 action=drop'",
        many: true,
        seed: None,
        set: |p, text| {
            let (port, own) = parse_port(text)?;
            p.add_port(port, own)
        },
        get: |p| {
            let own = |port: &u16| p.port_policies.iter().find(|policy| policy.port == *port);
            p.ports
                .iter()
                .map(|port| own(port).map_or(port.to_string(), PortPolicy::text))
                .collect()
        },
        clear: |p| {
            p.ports.clear();
            p.port_policies.clear();
        },
    },
    single(
        "action",
        "observe|defuse|drop",
        "What pings over the limit lead to: observe counts them, defuse turns them into pongs that the server ignores, drop drops the source's segments",
        |p, text| store(&mut p.action, word(text, &Action::WORDS)),
        |p| one(p.action.name()),
    ),
    seeded(
        single(
            "max-ping-rate",
            "N",
            "Pings a source may send in any window; exact up to 64, up to 1048576",
            |p, text| store(&mut p.max_ping_rate, whole(text, 1, Rate::MAX_LIMIT as u64)),
            |p| one(p.max_ping_rate),
        ),
        "MAX_PING_RATE",
    ),
    seeded(
        single(
            "window-seconds",
            "S",
            "Length of the window in seconds, 1 to 3600; a throttling ends one window after the last ping over the limit",
            |p, text| store(&mut p.window_seconds, whole(text, 1, 3600)),
            |p| one(p.window_seconds),
        ),
        "WINDOW_SECONDS",
    ),
    single(
        "min-throttle-seconds",
        "S",
        "How long a throttling lasts at the least, up to 604800; 0 is as long as the window",
        |p, text| store(&mut p.min_throttle_seconds, whole(text, 0, 604_800)),
        |p| one(p.min_throttle_seconds),
    ),
    single(
        "escalate-after",
        "N",
        "Drop a source that would be defused, once it has sent so many pings over the limit in one window; 0 is never",
        |p, text| store(&mut p.escalate_after, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.escalate_after),
    ),
    single(
        "max-ping-rate-per-connection",
        "N",
        "Pings a connection may send in any window; 0 is no such limit",
        |p, text| {
            store(&mut p.max_ping_rate_per_connection, whole(text, 0, Rate::MAX_LIMIT as u64))
        },
        |p| one(p.max_ping_rate_per_connection),
    ),
    single(
        "neighbour-share",
        "N",
        "Pings a window that each connection of a throttled source is still answered, 0 to 8: the heartbeats of neighbours behind one address",
        |p, text| store(&mut p.neighbour_share, whole(text, 0, 8)),
        |p| one(p.neighbour_share),
    ),
    single(
        "max-pong-rate",
        "N",
        "PONG frames a source may send in any window; 0 is no such limit",
        |p, text| store(&mut p.max_pong_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_pong_rate),
    ),
    single(
        "max-empty-fragment-rate",
        "N",
        "Fragments without payload that a source may send in any window; 0 is no such limit",
        |p, text| store(&mut p.max_empty_fragment_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_empty_fragment_rate),
    ),
    single(
        "max-tiny-frame-rate",
        "N",
        "Data frames of at most tiny-frame-bytes that a source may send in any window; 0 is no such limit",
        |p, text| store(&mut p.max_tiny_frame_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_tiny_frame_rate),
    ),
    single(
        "tiny-frame-bytes",
        "BYTES",
        "Longest payload of a tiny data frame, 0 to 125",
        |p, text| store(&mut p.tiny_frame_bytes, whole(text, 0, 125)),
        |p| one(p.tiny_frame_bytes),
    ),
    single(
        "max-close-rate",
        "N",
        "CLOSE frames a source may send in any window; 0 is no such limit",
        |p, text| store(&mut p.max_close_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_close_rate),
    ),
    single(
        "tls",
        "true|false",
        "The ports speak TLS: follow TLS records instead of frames; mostly of one port, --port 443/tls",
        |p, text| store(&mut p.tls, word(text, &[("true", true), ("false", false)])),
        |p| one(p.tls),
    ),
    single(
        "max-record-rate",
        "N",
        "On TLS ports: records small enough for a ping that a source may send in any window; reported, or acted on by drop; 0 is no such limit",
        |p, text| store(&mut p.max_record_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_record_rate),
    ),
    single(
        "record-bytes",
        "MIN-MAX",
        "On TLS ports: the lengths of records that may hold a ping, as their header has them",
        |p, text| store(&mut p.record_bytes, text.parse()),
        |p| one(p.record_bytes),
    ),
    single(
        "ipv4-prefix",
        "BITS",
        "How much of an IPv4 address makes a source, 1 to 32",
        |p, text| store(&mut p.ipv4_prefix, whole(text, 1, 32)),
        |p| one(p.ipv4_prefix),
    ),
    single(
        "ipv6-prefix",
        "BITS",
        "How much of an IPv6 address makes a source, 1 to 128",
        |p, text| store(&mut p.ipv6_prefix, whole(text, 1, 128)),
        |p| one(p.ipv6_prefix),
    ),
    single(
        "on-full-flows",
        "open|closed",
        "With a full flow table, let new connections through untracked (open) or refuse them (closed)",
        |p, text| store(&mut p.on_full_flows, word(text, &OnFull::WORDS)),
        |p| one(p.on_full_flows.name()),
    ),
    single(
        "on-full-sources",
        "open|closed",
        "With a full source table, answer a newcomer's pings (open) or treat them as over the limit (closed)",
        |p, text| store(&mut p.on_full_sources, word(text, &OnFull::WORDS)),
        |p| one(p.on_full_sources.name()),
    ),
    Setting {
        name: "cidr",
        value: "NETWORK",
        help: "Network with settings of its own, as '10.0.0.0/8 max-ping-rate=100 action=observe'; the longest prefix that covers a source decides",
        many: true,
        seed: None,
        set: |p, text| {
            p.add_cidr(parse_network(text)?);
            Ok(())
        },
        get: |p| p.cidrs.iter().map(NetworkPolicy::text).collect(),
        clear: |p| p.cidrs.clear(),
    },
    single(
        "fragments",
        "drop|pass",
        "Segments to a protected port in IP fragments, or behind headers that hide them: drop them, or let them pass uncounted",
        |p, text| store(&mut p.fragments, word(text, &Fragments::WORDS)),
        |p| one(p.fragments.name()),
    ),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> PolicySettings {
        PolicySettings {
            action: Action::Drop,
            max_ping_rate: 60,
            window_seconds: 1,
            min_throttle_seconds: 90,
            escalate_after: 300,
            max_ping_rate_per_connection: 5,
            neighbour_share: 3,
            max_pong_rate: 1,
            max_empty_fragment_rate: 2,
            max_tiny_frame_rate: 3000,
            tiny_frame_bytes: 16,
            max_close_rate: 4,
            tls: true,
            max_record_rate: 500,
            record_bytes: RecordBytes { min: 23, max: 148 },
            ipv4_prefix: 24,
            ipv6_prefix: 56,
            on_full_flows: OnFull::Closed,
            on_full_sources: OnFull::Closed,
            fragments: Fragments::Pass,
            ports: vec![80, 9001],
            port_policies: vec![PortPolicy {
                port: 9001,
                own: parse_port("9001 max-ping-rate=7 neighbour-share=0").unwrap().1,
            }],
            cidrs: vec![parse_network("10.0.0.0/8 action=observe").unwrap()],
        }
    }

    /// Written to the kernel and read back.
    fn there_and_back(settings: &PolicySettings, step: u32) -> PolicySettings {
        let rule = |network: &NetworkPolicy| {
            let rule = PolicySettings::rule(&network.own, step).unwrap();
            (network.cidr.addr(), network.cidr.prefix_len(), rule)
        };
        let rules: Vec<NetworkRule> = settings.cidrs.iter().map(rule).collect();
        PolicySettings::from_kernel(&settings.to_kernel(step).unwrap(), &rules)
    }

    #[test]
    fn the_kernel_form_reads_back_as_what_was_set() {
        for (settings, step) in [(settings(), 4), (PolicySettings::default(), 10)] {
            assert_eq!(there_and_back(&settings, step), settings);
        }
    }

    #[test]
    fn json_fields_are_the_settings_names() {
        let json = serde_json::to_value(settings()).unwrap();
        let mut fields: Vec<String> = POLICY.iter().map(Setting::json_name).collect();
        fields.push("port_policies".into());
        let object = json.as_object().unwrap();
        assert_eq!(object.len(), fields.len());
        assert!(fields.iter().all(|field| object.contains_key(field)), "{fields:?}");
    }

    #[test]
    fn a_merge_keeps_what_the_file_did_not_change() {
        let before = PolicySettings::default();
        let after = PolicySettings { max_ping_rate: 99, ports: vec![81], ..before.clone() };
        let mut current = PolicySettings { action: Action::Observe, ..before.clone() };
        current.merge(&before, &after);
        assert_eq!(
            current,
            PolicySettings {
                action: Action::Observe,
                max_ping_rate: 99,
                ports: vec![81],
                ..before
            }
        );
    }

    #[test]
    fn a_port_with_settings_of_its_own_has_a_scope() {
        let set = settings().to_kernel(0).unwrap();
        assert_eq!(set.ports, [(80, 0), (9001, 1)]);
        let limits: Vec<_> = set.scopes.iter().map(|p| (p.rate.limit, p.share)).collect();
        assert_eq!(limits, [(60, 3), (7, 0)]);
    }

    #[test]
    fn too_many_ports_with_settings_of_their_own_are_refused() {
        let mut policy = PolicySettings::default();
        let port = POLICY.iter().find(|setting| setting.name == "port").unwrap();
        let texts: Vec<String> = (1..=32).map(|n| format!("{n} max-ping-rate=5")).collect();
        let errors = port.replace(&mut policy, &texts);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].1.contains("port 32 is one too many"), "{errors:?}");
    }

    #[test]
    fn differences_name_old_and_new() {
        let old = PolicySettings::default();
        let new = PolicySettings { action: Action::Drop, ..old.clone() };
        assert_eq!(old.differences(&new), ["action: defuse → drop"]);
    }

    proptest! {
        #[test]
        fn every_setting_reads_back_what_it_wrote(
            limit in 1u32..=Rate::MAX_LIMIT, window in 1u32..=3600, v4 in 1u8..=32, v6 in 1u8..=128,
            share in 0u32..=8, step in 1u32..=10,
        ) {
            let from = PolicySettings {
                max_ping_rate: limit, window_seconds: window, ipv4_prefix: v4, ipv6_prefix: v6,
                neighbour_share: share, ..settings()
            };
            let mut to = PolicySettings::default();
            for setting in &POLICY {
                setting.copy(&from, &mut to);
            }
            prop_assert_eq!(&to, &from);
            prop_assert_eq!(there_and_back(&from, step), from);
        }
    }
}
