//! The policy as people set it, and its shape in the kernel.

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    maps::{self, Address, Policy},
    window::{Rate, RateError},
};

use super::{
    address::Prefixes,
    setting::{Setting, store, whole, word},
};

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
    /// Pings a connection may send in any window; 0: no such limit.
    pub max_ping_rate_per_connection: u32,
    /// Pings a window that each connection of a throttled source is still answered.
    pub neighbour_share: u32,
    pub ipv4_prefix: u8,
    pub ipv6_prefix: u8,
    pub on_full_flows: OnFull,
    pub on_full_sources: OnFull,
    pub fragments: Fragments,
    /// Protected TCP ports of the server side.
    pub ports: Vec<u16>,
}

impl Default for PolicySettings {
    fn default() -> PolicySettings {
        PolicySettings {
            action: Action::default(),
            max_ping_rate: 30,
            window_seconds: 10,
            max_ping_rate_per_connection: 0,
            neighbour_share: 2,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            on_full_flows: OnFull::default(),
            on_full_sources: OnFull::default(),
            fragments: Fragments::default(),
            ports: Vec::new(),
        }
    }
}

impl PolicySettings {
    /// The kernel's form, but for the rules, which the maps keep count of themselves.
    pub fn to_kernel(&self, clock_step_ms: u32) -> Result<Policy, RateError> {
        let window_ms = self.window_seconds.saturating_mul(1000);
        let rate = |limit| Rate::new(limit, window_ms, clock_step_ms);
        Ok(Policy {
            rate: rate(self.max_ping_rate)?,
            connection_rate: rate(self.max_ping_rate_per_connection)?,
            share: self.neighbour_share,
            rules_generation: 0,
            rules: 0,
            action: self.action.to_kernel(),
            flags: self.on_full_flows.flag(maps::FLOWS_FAIL_CLOSED)
                | self.on_full_sources.flag(maps::SOURCES_FAIL_CLOSED)
                | self.fragments.flag(),
            _pad: [0; 2],
            mask_v4: Address::mask(96 + u32::from(self.ipv4_prefix)),
            mask_v6: Address::mask(u32::from(self.ipv6_prefix)),
        })
    }

    /// What is in force, read back. The kernel's window is shorter than the one set by less than a
    /// second: by the step of its clock.
    pub fn from_kernel(policy: &Policy, ports: Vec<u16>) -> PolicySettings {
        let prefixes = Prefixes::of(policy);
        PolicySettings {
            action: Action::from_kernel(policy.action),
            max_ping_rate: policy.rate.limit,
            window_seconds: policy.rate.window_ms.div_ceil(1000),
            max_ping_rate_per_connection: policy.connection_rate.limit,
            neighbour_share: policy.share,
            ipv4_prefix: prefixes.v4,
            ipv6_prefix: prefixes.v6,
            on_full_flows: OnFull::from_flag(policy.flags & maps::FLOWS_FAIL_CLOSED != 0),
            on_full_sources: OnFull::from_flag(policy.flags & maps::SOURCES_FAIL_CLOSED != 0),
            fragments: Fragments::from_flags(policy.flags),
            ports,
        }
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

    /// Take over what changed from `before` to `after`, and leave the rest as it is.
    pub fn merge(&mut self, before: &PolicySettings, after: &PolicySettings) {
        for setting in &POLICY {
            if (setting.get)(before) != (setting.get)(after) {
                setting.copy(after, self);
            }
        }
    }
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
pub static POLICY: [Setting<PolicySettings>; 11] = [
    Setting {
        name: "port",
        value: "PORT",
        help: "TCP port of the WebSocket server to protect",
        many: true,
        seed: None,
        set: |p, text| {
            let port = whole(text, 1, 65_535)?;
            if !p.ports.contains(&port) {
                p.ports.push(port);
                p.ports.sort_unstable();
            }
            Ok(())
        },
        get: |p| p.ports.iter().map(u16::to_string).collect(),
        clear: |p| p.ports.clear(),
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
            max_ping_rate_per_connection: 5,
            neighbour_share: 3,
            ipv4_prefix: 24,
            ipv6_prefix: 56,
            on_full_flows: OnFull::Closed,
            on_full_sources: OnFull::Closed,
            fragments: Fragments::Pass,
            ports: vec![80, 9001],
        }
    }

    #[test]
    fn the_kernel_form_reads_back_as_what_was_set() {
        for (settings, step) in [(settings(), 4), (PolicySettings::default(), 10)] {
            let kernel = settings.to_kernel(step).unwrap();
            assert_eq!(PolicySettings::from_kernel(&kernel, settings.ports.clone()), settings);
        }
    }

    #[test]
    fn json_fields_are_the_settings_names() {
        let json = serde_json::to_value(settings()).unwrap();
        let fields: Vec<String> = POLICY.iter().map(Setting::json_name).collect();
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
            let kernel = from.to_kernel(step).unwrap();
            prop_assert_eq!(PolicySettings::from_kernel(&kernel, from.ports.clone()), from);
        }
    }
}
