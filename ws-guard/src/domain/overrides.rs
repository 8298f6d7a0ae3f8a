//! Own settings of ports and networks, which override the policy.
//!
//! Their text is the target and `SETTING=VALUE` pairs, as in `8443 max-ping-rate=5 action=drop`:
//! the form of flags, variables and reported differences, into which tables of the file are
//! converted.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use ws_guard_common::maps::own;

/// Setting that ports and networks may override.
pub struct Own {
    pub name: &'static str,
    /// Bit in the kernel: [`own`].
    pub bit: u32,
    /// Permitted for networks too; others are kept by connection, not by source.
    pub networks: bool,
}

/// Setting for `443/tls`.
pub(super) const TLS: &str = "tls";

pub const OWN: [Own; 12] = [
    Own { name: "action", bit: own::ACTION, networks: true },
    Own { name: "max-ping-rate", bit: own::LIMIT, networks: true },
    Own { name: "window-seconds", bit: own::WINDOW, networks: true },
    Own { name: "min-throttle-seconds", bit: own::MIN_THROTTLE, networks: true },
    Own { name: "escalate-after", bit: own::ESCALATE, networks: true },
    Own { name: "max-ping-rate-per-connection", bit: own::CONNECTION_LIMIT, networks: false },
    Own { name: "escalate-to", bit: own::ESCALATE_TO, networks: true },
    Own { name: "pace", bit: own::PACE, networks: true },
    Own { name: "connection-share", bit: own::SHARE, networks: false },
    Own { name: TLS, bit: own::TLS, networks: false },
    Own { name: "max-record-rate", bit: own::RECORD_LIMIT, networks: false },
    Own { name: "record-bytes", bit: own::RECORD_BYTES, networks: false },
];

/// Overridden settings, as texts for their [`Setting`](super::setting::Setting)s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(pub(super) BTreeMap<&'static str, String>);

impl Overrides {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Return the settings' bits in the kernel.
    pub fn bits(&self) -> u32 {
        let bit = |own: &Own| if self.0.contains_key(own.name) { own.bit } else { 0 };
        OWN.iter().map(bit).sum()
    }

    /// Add all settings of `other`, replacing existing ones.
    pub fn extend(&mut self, other: &Overrides) {
        self.0.extend(other.0.clone());
    }

    /// Format `SETTING=VALUE` pairs, each after a space.
    fn text(&self) -> String {
        self.0.iter().map(|(name, text)| format!(" {name}={text}")).collect()
    }
}

impl Serialize for Overrides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, text)| {
            // Numbers and switches as such, others as words.
            let value = serde_json::from_str::<Value>(text).ok();
            let value = value.filter(|value| value.is_u64() || value.is_boolean());
            (name.replace('-', "_"), value.unwrap_or_else(|| Value::from(text.as_str())))
        }))
    }
}

/// Port with its own settings; its sources are counted separately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPolicy {
    pub port: u16,
    #[serde(flatten)]
    pub own: Overrides,
}

impl PortPolicy {
    pub fn text(&self) -> String {
        let mut own = self.own.clone();
        let tls = own.0.get(TLS).is_some_and(|text| text == "true");
        if tls {
            own.0.remove(TLS);
        }
        format!("{}{}{}", self.port, if tls { "/tls" } else { "" }, own.text())
    }
}

/// Network with its own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    pub cidr: IpNet,
    #[serde(flatten)]
    pub own: Overrides,
}

impl NetworkPolicy {
    pub fn text(&self) -> String {
        format!("{}{}", self.cidr, self.own.text())
    }
}
