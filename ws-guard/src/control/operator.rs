//! Writes what an operator, or the configuration, decides.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use ipnet::IpNet;
use serde_json::Value;
use ws_guard_common::{
    maps::{Address, Operation, Request, Rule, answer},
    source::UNTIL_RELEASED,
    window::RateError,
};

use super::{Decision, Throttle, error::ApiError};
use crate::{
    config::Settings,
    domain::{
        address::{Given, Prefixes, network_text},
        clock::{Clock, step_ms},
        policy::{POLICY, PolicySettings},
        setting::{Setting, closest},
        source::SourceState,
    },
    guard::{GuardError, Maps, NetworkRule},
};

/// [`Rule::flags`]: the configuration made the rule. The kernel looks at [`Rule::ALLOW`] alone.
pub const CONFIGURED: u32 = 1 << 31;

/// Ten years: the longest that a throttling with an end lasts.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The one writer of policy and rules. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    maps: Maps,
    /// Held while policy or rules are read, changed and written.
    writing: Arc<Mutex<()>>,
}

impl Operator {
    pub fn new(maps: Maps) -> Operator {
        Operator { maps, writing: Arc::default() }
    }

    /// A panic of another writer left nothing half-done: each write is whole.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Put a configuration in force, policy and allowlist. Rules of operators stay.
    pub fn configure(&self, settings: &Settings) -> Result<(), ApiError> {
        self.configure_allowlist(&settings.allow)?;
        let _writing = self.lock();
        self.write_policy(&settings.policy)
    }

    /// Make the configured part of the allowlist what it should be.
    fn configure_allowlist(&self, networks: &[IpNet]) -> Result<(), ApiError> {
        let _writing = self.lock();
        let configured = |network: &IpNet| {
            let rule = Rule { flags: Rule::ALLOW | CONFIGURED };
            (network.addr(), network.prefix_len(), rule)
        };
        let mut rules: Vec<NetworkRule> = networks.iter().map(configured).collect();
        let theirs =
            self.maps.rules()?.into_iter().filter(|(_, _, rule)| rule.flags & CONFIGURED == 0);
        for (address, length, rule) in theirs {
            if !rules.iter().any(|(a, l, _)| (*a, *l) == (address, length)) {
                rules.push((address, length, rule));
            }
        }
        Ok(self.maps.set_rules(&rules)?)
    }

    /// Take over what a configuration changed, and keep what operators changed meanwhile.
    pub fn merge(&self, before: &Settings, after: &Settings) -> Result<PolicySettings, ApiError> {
        self.configure_allowlist(&after.allow)?;
        let _writing = self.lock();
        let mut policy = self.read_policy()?;
        policy.merge(&before.policy, &after.policy);
        self.write_policy(&policy)?;
        Ok(policy)
    }

    /// Change some fields of the policy, all or none of them.
    pub fn patch(
        &self,
        fields: &serde_json::Map<String, Value>,
    ) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        let mut policy = self.read_policy()?;
        let mut errors: Vec<String> =
            fields.iter().flat_map(|(name, value)| patch_field(&mut policy, name, value)).collect();
        if policy.ports.is_empty() {
            errors.push("ports: none left: give at least one".into());
        }
        if !errors.is_empty() {
            return Err(ApiError::bad(
                errors.join("\n"),
                "nothing was changed; correct the values",
            ));
        }
        self.write_policy(&policy)?;
        Ok(policy)
    }

    fn read_policy(&self) -> Result<PolicySettings, GuardError> {
        Ok(PolicySettings::from_kernel(&self.maps.policy()?, self.maps.ports()?))
    }

    fn write_policy(&self, policy: &PolicySettings) -> Result<(), ApiError> {
        let new = policy
            .to_kernel(step_ms())
            .map_err(|error| ApiError::bad(rate_error(error), "choose another limit or window"))?;
        self.maps.set_ports(&policy.ports)?;
        Ok(self.maps.set_policy(&new)?)
    }

    /// Add a network to the allowlist; returns it as it is kept.
    pub fn allow(&self, network: &str) -> Result<IpNet, ApiError> {
        let _writing = self.lock();
        let network = self.exemption(network)?;
        // The configuration's claim to an entry outlives an operator's wish for the same.
        let configured = self.maps.rules()?.into_iter().any(|(address, length, rule)| {
            rule.flags & CONFIGURED != 0
                && (address, length) == (network.addr(), network.prefix_len())
        });
        let flags = Rule::ALLOW | if configured { CONFIGURED } else { 0 };
        self.maps.set_rule(network.addr(), network.prefix_len(), Rule { flags })?;
        Ok(network)
    }

    /// Take a network off the allowlist.
    pub fn disallow(&self, network: &str) -> Result<IpNet, ApiError> {
        let _writing = self.lock();
        let given: Given = network.parse().map_err(|error: String| ApiError::refused(&error))?;
        // Not `exemption`: an entry must be removable that a changed prefix length made too narrow.
        let prefixes = Prefixes::of(&self.maps.policy()?);
        let network = match given {
            Given::Network(network) => network,
            Given::Address(address) => prefixes.source_of(address),
        };
        if !self.maps.remove_rule(network.addr(), network.prefix_len())? {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("{} is not on the allowlist", network_text(&network)),
                "list it with `ws-guard allow`",
            ));
        }
        Ok(network)
    }

    fn exemption(&self, network: &str) -> Result<IpNet, ApiError> {
        let prefixes = Prefixes::of(&self.maps.policy()?);
        let given: Given = network.parse().map_err(|error: String| ApiError::refused(&error))?;
        prefixes.exemption(given).map_err(|error| ApiError::refused(&error))
    }

    /// Throttle a source, for a while or until it is released.
    pub fn throttle(&self, wanted: &Throttle) -> Result<Decision, ApiError> {
        let source = self.source(&wanted.source)?;
        let clock = Clock::now();
        let until = match wanted.seconds {
            None => UNTIL_RELEASED,
            Some(seconds) => clock.now_ns + duration(seconds)?.as_nanos() as u64,
        };
        self.refuse_allowed(&source)?;
        self.request(Operation::Throttle, &source, until)?;
        Ok(Decision {
            source: network_text(&source),
            state: SourceState::Throttled,
            throttled_until: clock.at(until).filter(|_| until != UNTIL_RELEASED),
        })
    }

    /// Release a source, and forget the pings it is throttled for.
    pub fn release(&self, source: &str) -> Result<Decision, ApiError> {
        let source = self.source(source)?;
        self.request(Operation::Release, &source, 0)?;
        Ok(Decision {
            source: network_text(&source),
            state: SourceState::Ok,
            throttled_until: None,
        })
    }

    /// The source that an address belongs to; a network must be exactly one.
    fn source(&self, text: &str) -> Result<IpNet, ApiError> {
        let prefixes = Prefixes::of(&self.maps.policy()?);
        match text.parse().map_err(|error: String| ApiError::refused(&error))? {
            Given::Address(address) => Ok(prefixes.source_of(address)),
            Given::Network(network) => {
                let source = prefixes.source_of(network.addr());
                if source == network {
                    return Ok(source);
                }
                Err(ApiError::bad(
                    format!(
                        "{network} is not one source, which is a /{} here",
                        source.prefix_len()
                    ),
                    format!("name an address, or {source}"),
                ))
            }
        }
    }

    fn refuse_allowed(&self, source: &IpNet) -> Result<(), ApiError> {
        let allowlist = crate::domain::source::Allowlist::new(self.maps.rules()?);
        if allowlist.covers(source.addr()) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                format!("{} is on the allowlist, and would not be acted on", network_text(source)),
                "remove it there first, with `ws-guard allow CIDR --remove`",
            ));
        }
        Ok(())
    }

    /// Run the control program, which takes the source's lock.
    fn request(&self, operation: Operation, source: &IpNet, until: u64) -> Result<(), ApiError> {
        let key: Address = source.addr().into();
        let request = Request { operation: operation as u32, pings: 0, until, source: key };
        let name = network_text(source);
        match self.maps.request(&request)? {
            answer::DONE => Ok(()),
            answer::NOT_FOUND => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("{name} is no source: it has sent no ping and was never throttled"),
                "list the sources with `ws-guard sources`",
            )),
            answer::TABLE_FULL => Err(ApiError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("the source table has no room for {name}"),
                "run with a larger --max-sources",
            )),
            other => Err(ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the control program answered {other} for {name}"),
                "see `ws-guard doctor`",
            )),
        }
    }
}

fn rate_error(error: RateError) -> &'static str {
    match error {
        RateError::LimitTooLarge => "the limit is larger than the kernel can keep",
        RateError::WindowOutOfRange => "the window is out of the kernel's range",
    }
}

/// A length of time from JSON: positive and finite.
fn duration(seconds: f64) -> Result<Duration, ApiError> {
    let refused = || {
        ApiError::bad(
            format!("seconds: {seconds} is no length of time"),
            "give a positive number of seconds, or leave it out to throttle until released",
        )
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| refused())?;
    if duration.is_zero() { Err(refused()) } else { Ok(duration.min(LONGEST)) }
}

/// Set one field of the policy from JSON; every error names it.
fn patch_field(policy: &mut PolicySettings, name: &str, value: &Value) -> Vec<String> {
    let Some(setting) = POLICY.iter().find(|setting| setting.json_name() == name) else {
        let names: Vec<String> = POLICY.iter().map(Setting::json_name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hint = closest(name, &names).map_or(names.join(", "), String::from);
        return vec![format!("{name}: there is no such field: did you mean {hint}?")];
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let texts: Option<Vec<String>> = match value {
        Value::Array(items) if setting.many => items.iter().map(scalar).collect(),
        other => scalar(other).map(|text| vec![text]),
    };
    let Some(texts) = texts else {
        return vec![format!("{name}: {value} is of the wrong type: give a number or a word")];
    };
    let errors = setting.replace(policy, &texts);
    errors.into_iter().map(|(_, error)| format!("{name}: {error}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_set_by_their_json_names() {
        let mut policy = PolicySettings::default();
        assert!(patch_field(&mut policy, "max_ping_rate", &json!(5)).is_empty());
        assert!(patch_field(&mut policy, "ports", &json!([80, "443"])).is_empty());
        assert_eq!((policy.max_ping_rate, policy.ports), (5, vec![80, 443]));
    }

    #[test]
    fn every_error_names_field_value_and_remedy() {
        let mut policy = PolicySettings::default();
        let mut error = |name, value| patch_field(&mut policy, name, &value).join("; ");
        assert_eq!(
            error("window_seconds", json!(0)),
            r#"window_seconds: "0" is out of range: give a whole number from 1 to 3600"#
        );
        assert!(error("windows_second", json!(1)).contains("did you mean window_seconds?"));
        assert!(error("action", json!({"a": 1})).contains("wrong type"));
        assert_eq!(error("ports", json!([0, 70000])).matches("ports:").count(), 2);
    }

    #[test]
    fn lengths_of_time_are_positive() {
        assert_eq!(duration(1.5).unwrap(), Duration::from_millis(1500));
        assert_eq!(duration(1e18).unwrap(), LONGEST);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_field_is_set_or_refused(name in "[a-z_]{0,30}", text in ".{0,20}", number: i64) {
            let mut policy = PolicySettings::default();
            patch_field(&mut policy, &name, &json!(text));
            patch_field(&mut policy, "max_ping_rate", &json!(number));
            prop_assert!(policy.max_ping_rate >= 1);
        }
    }
}
