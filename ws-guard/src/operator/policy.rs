//! Changes of the policy by operators or the configuration.
//! `networks.rs` writes the rules for networks, `throttling.rs` the state of sources.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::Value;

use super::{error::ApiError, state_file::StateFile};
use crate::{
    config::Settings,
    domain::{
        clock::step_ms,
        overrides::{Overrides, PortPolicy},
        policy::{MOST_PORT_POLICIES, POLICY, PolicySettings},
        setting::{Setting, closest},
        source::SourceViews,
    },
    guard::{GuardError, Maps},
};

/// The only writer of policy, rules and sources. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    pub(super) maps: Maps,
    /// Held while policy or rules are read, changed and written.
    writing: Arc<Mutex<()>>,
    /// File of decisions, if they are kept.
    pub(super) file: Option<StateFile>,
    /// Held while the file is written.
    pub(super) keeping: Arc<Mutex<()>>,
}

impl Operator {
    /// Create the writer; `file` keeps decisions, if anything does.
    pub fn new(maps: Maps, file: Option<StateFile>) -> Operator {
        Operator { maps, writing: Arc::default(), file, keeping: Arc::default() }
    }

    /// Lock for writing. A panicked writer left nothing half-done: each write is whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Apply a configuration's policy and networks. Rules of operators stay.
    pub fn configure(&self, settings: &Settings) -> Result<(), ApiError> {
        let _writing = self.lock();
        self.configure_networks(settings)?;
        self.write_policy(&settings.policy)
    }

    /// Apply a configuration's changes, and keep what operators changed meanwhile.
    pub fn merge(&self, before: &Settings, after: &Settings) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        self.configure_networks(after)?;
        let mut policy = self.read_policy()?;
        policy.merge(&before.policy, &after.policy);
        self.write_policy(&policy)?;
        Ok(policy)
    }

    /// Change fields of the policy, all or none of them.
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
            return Err(ApiError::unchanged(&errors));
        }
        self.write_policy(&policy)?;
        Ok(policy)
    }

    /// Add own settings to those of a protected port.
    pub fn set_port(&self, port: u16, own: &Overrides) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        let mut policy = self.read_policy()?;
        if !policy.ports.contains(&port) {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("port {port} is not protected"),
                "protect it first, with `ws-guard policy set --port` and all the ports to protect",
            ));
        }
        match policy.port_policies.iter_mut().find(|policy| policy.port == port) {
            Some(known) => known.own.extend(own),
            None => policy.port_policies.push(PortPolicy { port, own: own.clone() }),
        }
        if policy.port_policies.len() > MOST_PORT_POLICIES {
            return Err(ApiError::bad(
                format!("{MOST_PORT_POLICIES} ports have settings of their own already"),
                "unset those of another port first".to_owned(),
            ));
        }
        policy.port_policies.sort_unstable_by_key(|policy| policy.port);
        self.write_policy(&policy)?;
        Ok(policy)
    }

    /// Remove a port's own settings; it stays protected.
    pub fn unset_port(&self, port: u16) -> Result<PolicySettings, ApiError> {
        let _writing = self.lock();
        let mut policy = self.read_policy()?;
        let before = policy.port_policies.len();
        policy.port_policies.retain(|policy| policy.port != port);
        if policy.port_policies.len() == before {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("port {port} has no settings of its own"),
                "list them with `ws-guard policy get`",
            ));
        }
        self.write_policy(&policy)?;
        Ok(policy)
    }

    pub(super) fn read_policy(&self) -> Result<PolicySettings, GuardError> {
        Ok(PolicySettings::from_kernel(&self.maps.policies()?, &self.maps.rules()?))
    }

    fn write_policy(&self, policy: &PolicySettings) -> Result<(), ApiError> {
        let new = policy.to_kernel(step_ms())?;
        let views = self.views()?;
        let after = SourceViews { policies: new, ..views.clone() };
        self.regrouping(&views, &after, || self.maps.set_policies(&after.policies))
    }
}

/// Set one field of the policy from JSON; every error names it.
fn patch_field(policy: &mut PolicySettings, name: &str, value: &Value) -> Vec<String> {
    if ["cidrs", "port_policies"].contains(&name) {
        return vec![format!(
            "{name}: cannot be changed as a whole: use PATCH and DELETE of /v1/policy/cidr and /v1/policy/port"
        )];
    }
    let Some(setting) = POLICY.iter().find(|setting| setting.json_name() == name) else {
        let names: Vec<String> = POLICY.iter().map(Setting::json_name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hint = closest(name, &names).map_or(names.join(", "), String::from);
        return vec![format!("{name}: there is no such field: did you mean {hint}?")];
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(switch) => Some(switch.to_string()),
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
