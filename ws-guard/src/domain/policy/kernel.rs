//! Policy in the kernel's form.

use ipnet::IpNet;
use ws_guard_common::{
    flood::{CLASSES, Class},
    maps::{self, Address, Limits, Policy, Rule, SCOPES},
    window::{Rate, RateError},
};

use super::{
    choice::{Action, EscalateTo, Fragments, OnFullFlows, OnFullSources},
    headers::ClientFrom,
    settings::PolicySettings,
};
use crate::{
    domain::{
        address::prefixes_of,
        overrides::{NetworkPolicy, OWN, Overrides, PortPolicy},
        pace::Pace,
        proxies::TrustedProxies,
        records::RecordBytes,
    },
    guard::{NetworkRule, PolicySet},
};

impl PolicySettings {
    /// Convert all but the networks, for which see [`PolicySettings::rule`].
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
        let proxies = self.trusted_proxies.networks().copied().collect();
        Ok(PolicySet { scopes, ports, proxies, headers: self.client_from.to_kernel() })
    }

    /// Convert the policy of one scope, with the settings `own` of its own.
    fn scope(&self, own: u32, clock_step_ms: u32) -> Result<Policy, RateError> {
        let window_ms = self.window_seconds.saturating_mul(1000);
        let rate = |limit| Rate::new(limit, window_ms, clock_step_ms);
        let classes = self.class_limits();
        // Frames and records are never visible on the same port.
        let of_records = |class: usize| class == Class::SmallRecord as usize;
        let mut limits = classes.iter().enumerate();
        let limits_classes =
            limits.any(|(class, limit)| *limit > 0 && of_records(class) == self.tls);
        let [a, b, c, d, e] = classes;
        Ok(Policy {
            rate: rate(self.max_ping_rate)?,
            connection_rate: rate(self.max_ping_rate_per_connection)?,
            share: self.connection_share,
            action: self.action.to_kernel(),
            flags: self.on_full_flows.flag()
                | self.on_full_sources.flag()
                | self.fragments.flag()
                | if self.ban_forced { maps::BAN_FORCED } else { 0 }
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
            escalate_to: self.escalate_to.to_kernel(),
            pace: self.pace.to_kernel(),
            own,
            ..Policy::default()
        })
    }

    /// Return the limits of other frames, in the order of [`Class`].
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

    /// Return the rule of a network with its own settings.
    pub fn rule(own: &Overrides, clock_step_ms: u32) -> Result<Rule, RateError> {
        let policy = own.over(&PolicySettings::default()).scope(0, clock_step_ms)?;
        Ok(Rule { flags: own.bits(), limits: Limits::of(&policy) })
    }

    /// Convert the policy in force back.
    /// The kernel's windows are shorter than the set ones by less than a second: by the step of its
    /// clock.
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
            trusted_proxies: TrustedProxies::of(&set.proxies),
            client_from: ClientFrom::from_kernel(&set.headers),
            ..PolicySettings::of_scope(&first)
        }
    }

    fn of_scope(policy: &Policy) -> PolicySettings {
        let prefixes = prefixes_of(policy);
        let class = |class: Class| policy.class_limits[class as usize].limit;
        PolicySettings {
            action: Action::from_kernel(policy.action),
            max_ping_rate: policy.rate.limit,
            window_seconds: policy.rate.window_ms / 1000,
            min_throttle_seconds: policy.min_throttle_ms / 1000,
            escalate_after: policy.escalate_after,
            escalate_to: EscalateTo::from_kernel(policy.escalate_to),
            pace: Pace::from_kernel(policy.pace),
            ban_forced: policy.flags & maps::BAN_FORCED != 0,
            max_ping_rate_per_connection: policy.connection_rate.limit,
            connection_share: policy.share,
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
            on_full_flows: OnFullFlows::from_flags(policy.flags),
            on_full_sources: OnFullSources::from_flags(policy.flags),
            fragments: Fragments::from_flags(policy.flags),
            ..PolicySettings::default()
        }
    }
}

/// Return the settings of a rule, if it has any.
fn network_policy((address, length, rule): &NetworkRule) -> Option<NetworkPolicy> {
    let limits = &rule.limits;
    let policy = Policy {
        rate: limits.rate,
        action: limits.action,
        min_throttle_ms: limits.min_throttle_ms,
        escalate_after: limits.escalate_after,
        escalate_to: limits.escalate_to,
        pace: limits.pace,
        ..Policy::default()
    };
    let bits = OWN.iter().filter(|own| own.networks).map(|own| own.bit);
    let networks: u32 = bits.sum();
    let own = Overrides::of(rule.flags & networks, &PolicySettings::of_scope(&policy));
    let cidr = IpNet::new(*address, *length).ok().filter(|_| !own.is_empty())?;
    Some(NetworkPolicy { cidr, own })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ws_guard_common::forwarded::names::HeaderNames;

    use super::*;
    use crate::domain::{
        policy::{POLICY, parse_network, parse_port},
        setting::Setting,
    };

    fn settings() -> PolicySettings {
        PolicySettings {
            action: Action::Drop,
            max_ping_rate: 60,
            window_seconds: 1,
            min_throttle_seconds: 90,
            escalate_after: 300,
            escalate_to: EscalateTo::Ban,
            pace: Pace::from_kernel(1500),
            ban_forced: true,
            max_ping_rate_per_connection: 5,
            connection_share: 3,
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
            on_full_flows: OnFullFlows::Closed,
            on_full_sources: OnFullSources::Closed,
            fragments: Fragments::Pass,
            ports: vec![80, 9001],
            port_policies: vec![PortPolicy {
                port: 9001,
                own: parse_port("9001 max-ping-rate=7 connection-share=0 action=ban").unwrap().1,
            }],
            cidrs: vec![
                parse_network("10.0.0.0/8 action=observe escalate-to=ban pace=off").unwrap(),
            ],
            trusted_proxies: TrustedProxies::of(&["10.0.0.1/32".parse().unwrap()]),
            client_from: ClientFrom::from_kernel(&{
                let mut names = HeaderNames::default();
                names.set(0, "x-real-ip");
                names
            }),
        }
    }

    /// Convert to the kernel's form and back.
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
            share in 0u32..=64, step in 1u32..=10,
        ) {
            let from = PolicySettings {
                max_ping_rate: limit, window_seconds: window, ipv4_prefix: v4, ipv6_prefix: v6,
                connection_share: share, ..settings()
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
