//! Rules for networks: the allowlist, and own settings.
//! Both share one rule per network, each with its origin. The configuration's part goes when the
//! configuration no longer names it; an operator's stays until it is removed.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use ipnet::IpNet;
use ws_guard_common::maps::{Limits, Rule};

use super::{error::ApiError, policy::Operator};
use crate::{
    config::Settings,
    domain::{
        address::{Given, exemption, network_text, prefixes_of},
        clock::step_ms,
        origin::{ALLOWED_BY_CONFIG, ALLOWED_BY_OPERATOR, SET_BY_OPERATOR},
        overrides::{NetworkPolicy, OWN, Overrides},
        policy::PolicySettings,
        source::{Rules, SourceViews},
    },
};

/// Return the bits of the settings in a rule.
fn settings_of(rule: &Rule) -> u32 {
    rule.flags & OWN.iter().map(|own| own.bit).sum::<u32>()
}

/// Return the rule without an exemption from `origin`.
fn without_exemption(mut rule: Rule, origin: u32) -> Rule {
    rule.flags &= !origin;
    if rule.flags & (ALLOWED_BY_CONFIG | ALLOWED_BY_OPERATOR) == 0 {
        rule.flags &= !Rule::ALLOW;
    }
    rule
}

fn with_exemption(rule: Rule, origin: u32) -> Rule {
    Rule { flags: rule.flags | Rule::ALLOW | origin, ..rule }
}

fn without_settings(rule: Rule) -> Rule {
    let flags = rule.flags & !settings_of(&rule) & !SET_BY_OPERATOR;
    Rule { flags, limits: Limits::default() }
}

/// Return `rule` with these settings, replacing its own.
fn with_settings(rule: Rule, own: &Overrides, origin: u32) -> Result<Rule, ApiError> {
    let kernel = PolicySettings::rule(own, step_ms())?;
    let flags = without_settings(rule).flags | kernel.flags | origin;
    Ok(Rule { flags, limits: kernel.limits })
}

impl Operator {
    /// Update the configured part of the rules. The caller holds the lock.
    pub(super) fn configure_networks(&self, settings: &Settings) -> Result<(), ApiError> {
        let mut rules: BTreeMap<IpNet, Rule> = BTreeMap::new();
        for (address, length, rule) in self.maps.rules()? {
            let Ok(network) = IpNet::new(address, length) else { continue };
            let rule = without_exemption(rule, ALLOWED_BY_CONFIG);
            let theirs = rule.flags & SET_BY_OPERATOR != 0;
            rules.insert(network, if theirs { rule } else { without_settings(rule) });
        }
        for network in &settings.allow {
            let rule = rules.entry(*network).or_default();
            *rule = with_exemption(*rule, ALLOWED_BY_CONFIG);
        }
        for network in &settings.policy.cidrs {
            let rule = rules.entry(network.cidr).or_default();
            if rule.flags & SET_BY_OPERATOR == 0 {
                *rule = with_settings(*rule, &network.own, 0)?;
            }
        }
        let rules: Vec<_> = rules
            .into_iter()
            .filter(|(_, rule)| rule.flags != 0)
            .map(|(network, rule)| (network.addr(), network.prefix_len(), rule))
            .collect();
        let before = self.views()?;
        let after = SourceViews { rules: Rules::new(rules.iter().copied()), ..before.clone() };
        self.regrouping(&before, &after, || self.maps.set_rules(&rules))
    }

    /// Add a network to the allowlist; return it as stored.
    pub fn allow(&self, network: &str) -> Result<IpNet, ApiError> {
        self.kept_after(|| self.allow_now(network))
    }

    /// Save operators' decisions after a successful change.
    fn kept_after<T>(&self, change: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        let changed = change()?;
        self.keep();
        Ok(changed)
    }

    pub(super) fn allow_now(&self, network: &str) -> Result<IpNet, ApiError> {
        let _writing = self.lock();
        let network = self.whole_sources(network)?;
        let rule = self.rule_of(&network)?.unwrap_or_default();
        self.put(&network, with_exemption(rule, ALLOWED_BY_OPERATOR))?;
        Ok(network)
    }

    /// Remove a network from the allowlist.
    pub fn disallow(&self, network: &str) -> Result<IpNet, ApiError> {
        self.kept_after(|| self.disallow_now(network))
    }

    fn disallow_now(&self, network: &str) -> Result<IpNet, ApiError> {
        let _writing = self.lock();
        let network = self.kept(network)?;
        let known = self.rule_of(&network)?.filter(|rule| rule.flags & Rule::ALLOW != 0);
        let Some(rule) = known else {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("{} is not on the allowlist", network_text(&network)),
                "list it with `ws-guard allow`",
            ));
        };
        let rule = without_exemption(rule, ALLOWED_BY_CONFIG | ALLOWED_BY_OPERATOR);
        self.put(&network, rule)?;
        Ok(network)
    }

    /// Add own settings to those of a network.
    pub fn set_cidr(&self, network: &str, own: &Overrides) -> Result<PolicySettings, ApiError> {
        self.kept_after(|| self.set_cidr_now(network, own))
    }

    pub(super) fn set_cidr_now(
        &self,
        network: &str,
        own: &Overrides,
    ) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        let network = self.whole_sources(network)?;
        let rule = self.rule_of(&network)?.unwrap_or_default();
        let policy = self.read_policy()?;
        let known = policy.cidrs.into_iter().find(|known| known.cidr == network);
        let mut all = known.map_or_else(Overrides::default, |known| known.own);
        all.extend(own);
        self.put(&network, with_settings(rule, &all, SET_BY_OPERATOR)?)?;
        Ok(self.read_policy()?)
    }

    /// Remove the settings that an operator gave a network.
    /// Those of the configuration, if any, apply again.
    pub fn unset_cidr(
        &self,
        network: &str,
        configured: &[NetworkPolicy],
    ) -> Result<PolicySettings, ApiError> {
        self.kept_after(|| self.unset_cidr_now(network, configured))
    }

    fn unset_cidr_now(
        &self,
        network: &str,
        configured: &[NetworkPolicy],
    ) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        let network = self.kept(network)?;
        let rule = self.rule_of(&network)?.unwrap_or_default();
        let name = network_text(&network);
        if settings_of(&rule) == 0 {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("{name} has no settings of its own"),
                "list them with `ws-guard policy get`",
            ));
        }
        if rule.flags & SET_BY_OPERATOR == 0 {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("the settings of {name} come from the configuration"),
                "remove them there, or set others with `ws-guard policy set --cidr`",
            ));
        }
        let rule = match configured.iter().find(|policy| policy.cidr == network) {
            Some(policy) => with_settings(rule, &policy.own, 0)?,
            None => without_settings(rule),
        };
        let rule = Rule { flags: rule.flags & !SET_BY_OPERATOR, ..rule };
        self.put(&network, rule)?;
        Ok(self.read_policy()?)
    }

    fn rule_of(&self, network: &IpNet) -> Result<Option<Rule>, ApiError> {
        let wanted = (network.addr(), network.prefix_len());
        let rules = self.maps.rules()?;
        Ok(rules.into_iter().find(|(a, l, _)| (*a, *l) == wanted).map(|(_, _, rule)| rule))
    }

    /// Write a rule, or remove one without any effect.
    fn put(&self, network: &IpNet, rule: Rule) -> Result<(), ApiError> {
        let (address, length) = (network.addr(), network.prefix_len());
        let kept = rule.flags & Rule::ALLOW != 0 || settings_of(&rule) != 0;
        let before = self.views()?;
        let mut rules = self.maps.rules()?;
        rules.retain(|(a, l, _)| (*a, *l) != (address, length));
        rules.extend(kept.then_some((address, length, rule)));
        let after = SourceViews { rules: Rules::new(rules), ..before.clone() };
        self.regrouping(&before, &after, || match kept {
            true => self.maps.set_rule(address, length, rule),
            false => self.maps.remove_rule(address, length).map(drop),
        })
    }

    /// Parse a network that holds whole sources; an address means its source.
    fn whole_sources(&self, network: &str) -> Result<IpNet, ApiError> {
        let prefixes = prefixes_of(&self.maps.policy()?);
        let given: Given = network.parse().map_err(|error: String| ApiError::refused(&error))?;
        exemption(&prefixes, given).map_err(|error| ApiError::refused(&error))
    }

    /// Parse a network that has a rule.
    /// Not [`Operator::whole_sources`]: rules that a changed prefix length made too narrow must be
    /// removable.
    fn kept(&self, network: &str) -> Result<IpNet, ApiError> {
        let prefixes = prefixes_of(&self.maps.policy()?);
        match network.parse().map_err(|error: String| ApiError::refused(&error))? {
            Given::Network(network) => Ok(network),
            Given::Address(address) => Ok(prefixes.source_of(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use ws_guard_common::maps::own;

    use super::*;
    use crate::domain::policy::parse_network;

    #[test]
    fn an_exemption_lasts_until_its_last_origin_is_gone() {
        let both = with_exemption(Rule::default(), ALLOWED_BY_CONFIG);
        let both = with_exemption(both, ALLOWED_BY_OPERATOR);
        let one = without_exemption(both, ALLOWED_BY_CONFIG);
        assert_eq!(one.flags, Rule::ALLOW | ALLOWED_BY_OPERATOR);
        assert_eq!(without_exemption(one, ALLOWED_BY_OPERATOR), Rule::default());
    }

    #[test]
    fn settings_change_independently_of_an_exemption() {
        let allowed = with_exemption(Rule::default(), ALLOWED_BY_OPERATOR);
        let policy = parse_network("10.0.0.0/8 max-ping-rate=100").unwrap();
        let rule = with_settings(allowed, &policy.own, SET_BY_OPERATOR).unwrap();
        assert_eq!((settings_of(&rule), rule.limits.rate.limit), (own::LIMIT, 100));
        assert_eq!(without_settings(rule), allowed);
    }
}
