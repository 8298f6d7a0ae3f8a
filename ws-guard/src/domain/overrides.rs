//! Settings of a port's or a network's own, over the policy for all.
//!
//! Their text is the target and `SETTING=VALUE` pairs, as in `8443 max-ping-rate=5 action=drop`:
//! the form in flags and variables, what a table of the file is turned into, and what differences
//! are told in.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use ws_guard_common::maps::own;

use super::{
    address::{Given, Quoted},
    policy::{POLICY, PolicySettings},
    setting::{Setting, closest},
};

/// A setting that ports and networks may have of their own.
pub struct Own {
    pub name: &'static str,
    /// Its bit in the kernel: [`own`].
    pub bit: u32,
    /// For networks too; the others are kept by connection, not by source.
    pub networks: bool,
}

/// Setting for `443/tls`.
const TLS: &str = "tls";

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

/// The settings of their own, as texts that their [`Setting`]s take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<&'static str, String>);

fn setting(name: &str) -> Option<&'static Setting<PolicySettings>> {
    POLICY.iter().find(|setting| setting.name == name)
}

impl Overrides {
    /// Set one from text, for a network or for a port.
    pub fn set(&mut self, name: &str, text: &str, network: bool) -> Result<(), String> {
        let names: Vec<&str> =
            OWN.iter().filter(|own| own.networks || !network).map(|own| own.name).collect();
        let Some(own) = OWN.iter().find(|own| own.name == name && names.contains(&name)) else {
            let hint = closest(name, &names).map_or(names.join(", "), String::from);
            let what = if network { "a network" } else { "a port" };
            return Err(format!(
                "{} is no setting that {what} has of its own: give {hint}",
                Quoted(name)
            ));
        };
        let setting = setting(own.name).ok_or("there is no such setting")?;
        let mut trial = PolicySettings::default();
        (setting.set)(&mut trial, text).map_err(|error| format!("{name}: {error}"))?;
        self.0.insert(own.name, (setting.get)(&trial).join(","));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their bits in the kernel.
    pub fn bits(&self) -> u32 {
        let bit = |own: &Own| if self.0.contains_key(own.name) { own.bit } else { 0 };
        OWN.iter().map(bit).sum()
    }

    /// Those of `policy`'s settings that `bits` name.
    pub fn of(bits: u32, policy: &PolicySettings) -> Overrides {
        let named = OWN.iter().filter(|own| bits & own.bit != 0);
        let text = |own: &Own| Some((own.name, (setting(own.name)?.get)(policy).join(",")));
        Overrides(named.filter_map(text).collect())
    }

    /// `policy` with these in place of its own.
    pub fn over(&self, policy: &PolicySettings) -> PolicySettings {
        let mut policy = policy.clone();
        for (name, text) in &self.0 {
            if let Some(setting) = setting(name) {
                setting.replace(&mut policy, &[text]);
            }
        }
        policy
    }

    /// Take over all that `other` has.
    pub fn extend(&mut self, other: &Overrides) {
        self.0.extend(other.0.clone());
    }

    /// `SETTING=VALUE` pairs, each with a space before it.
    fn text(&self) -> String {
        self.0.iter().map(|(name, text)| format!(" {name}={text}")).collect()
    }

    /// From `SETTING=VALUE` words.
    fn parse<'a>(words: impl Iterator<Item = &'a str>, network: bool) -> Result<Overrides, String> {
        let mut overrides = Overrides::default();
        for word in words {
            let (name, text) = word.split_once('=').ok_or_else(|| {
                format!("{} is no setting: write it as max-ping-rate=60", Quoted(word))
            })?;
            overrides.set(name, text, network)?;
        }
        Ok(overrides)
    }

    /// From the fields of a JSON object; every error is returned.
    pub fn from_fields<'a>(
        fields: impl Iterator<Item = (&'a String, &'a Value)>,
        network: bool,
    ) -> Result<Overrides, Vec<String>> {
        let mut overrides = Overrides::default();
        let mut errors = Vec::new();
        for (name, value) in fields {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            errors.extend(overrides.set(&name.replace('_', "-"), &text, network).err());
        }
        if errors.is_empty() { Ok(overrides) } else { Err(errors) }
    }
}

impl Serialize for Overrides {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, text)| {
            // Numbers and switches as such, the others as words.
            let value = serde_json::from_str::<Value>(text).ok();
            let value = value.filter(|value| value.is_u64() || value.is_boolean());
            (name.replace('-', "_"), value.unwrap_or_else(|| Value::from(text.as_str())))
        }))
    }
}

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Overrides, D::Error> {
        let fields = serde_json::Map::deserialize(deserializer)?;
        Overrides::from_fields(fields.iter(), false).map_err(|e| D::Error::custom(e.join("; ")))
    }
}

/// A port with settings of its own: its sources are counted for themselves.
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

/// A network with settings of its own.
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

/// `PORT[/tls] [SETTING=VALUE…]`.
pub fn parse_port(text: &str) -> Result<(u16, Overrides), String> {
    let (target, settings) = target(text);
    let (port, protocol) = target.split_once('/').map_or((target, None), |(a, b)| (a, Some(b)));
    let port = super::setting::whole(port, 1, 65_535)?;
    let mut own = Overrides::parse(settings, false)?;
    match protocol {
        None => {}
        Some(TLS) => own.set(TLS, "true", false)?,
        Some(other) => {
            return Err(format!(
                "{} is no protocol of a port: write {port}/tls for one that speaks TLS, or {port}",
                Quoted(other)
            ));
        }
    }
    Ok((port, own))
}

/// `CIDR SETTING=VALUE…`.
pub fn parse_network(text: &str) -> Result<NetworkPolicy, String> {
    let (network, settings) = target(text);
    let cidr = match network.parse()? {
        Given::Network(network) => network,
        Given::Address(address) => address.into(),
    };
    let own = Overrides::parse(settings, true)?;
    if own.is_empty() {
        return Err(format!("{cidr} has no setting: write it as '{cidr} max-ping-rate=60'"));
    }
    Ok(NetworkPolicy { cidr, own })
}

fn target(text: &str) -> (&str, std::str::SplitWhitespace<'_>) {
    let mut words = text.split_whitespace();
    (words.next().unwrap_or_default(), words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_back() {
        let text = "10.0.0.0/8 action=drop max-ping-rate=100 window-seconds=5";
        assert_eq!(parse_network(text).unwrap().text(), text);
        let (port, own) = parse_port(" 8443  connection-share=0 ").unwrap();
        assert_eq!(PortPolicy { port, own }.text(), "8443 connection-share=0");
        assert_eq!(
            parse_network("::ffff:10.0.0.1 escalate-after=1").unwrap().cidr.prefix_len(),
            32
        );
    }

    #[test]
    fn errors_name_value_and_remedy() {
        let network = |text| parse_network(text).unwrap_err();
        assert!(network("10.0.0.0/8").contains("write it as '10.0.0.0/8 max-ping-rate=60'"));
        assert!(network("10.0.0.0/8 connection-share=1").contains("a network has of its own"));
        assert!(network("10.0.0.0/8 max-ping-rte=1").ends_with("give max-ping-rate"));
        assert_eq!(
            network("10.0.0.0/8 window-seconds=0"),
            r#"window-seconds: "0" is out of range: give a whole number from 1 to 3600"#
        );
        assert!(network("nonsense max-ping-rate=1").contains("neither an address nor a network"));
        assert!(parse_port("80 fast").unwrap_err().contains("write it as max-ping-rate=60"));
    }

    #[test]
    fn json_holds_numbers_and_words() {
        let network = parse_network("10.0.0.0/8 action=drop max-ping-rate=100").unwrap();
        let json = serde_json::to_value(&network).unwrap();
        let wanted =
            serde_json::json!({"cidr": "10.0.0.0/8", "action": "drop", "max_ping_rate": 100});
        assert_eq!(json, wanted);
        assert_eq!(serde_json::from_value::<NetworkPolicy>(json).unwrap(), network);
    }

    #[test]
    fn bits_name_the_same_settings() {
        let (_, own) = parse_port("80 action=observe window-seconds=7").unwrap();
        assert_eq!(own.bits(), own::ACTION | own::WINDOW);
        let policy = own.over(&PolicySettings::default());
        assert_eq!((policy.window_seconds, policy.max_ping_rate), (7, 30));
        assert_eq!(Overrides::of(own.bits(), &policy), own);
    }

    #[test]
    fn a_tls_port_is_written_with_its_protocol() {
        let (port, own) = parse_port("443/tls record-bytes=23-148 max-record-rate=50").unwrap();
        assert_eq!((port, own.bits()), (443, own::TLS | own::RECORD_BYTES | own::RECORD_LIMIT));
        let policy = PortPolicy { port, own };
        assert_eq!(policy.text(), "443/tls max-record-rate=50 record-bytes=23-148");
        assert_eq!(parse_port(&policy.text()).unwrap(), (443, policy.own.clone()));
        let json = serde_json::to_value(&policy).unwrap();
        let wanted = serde_json::json!({
            "port": 443, "tls": true, "max_record_rate": 50, "record_bytes": "23-148"
        });
        assert_eq!(json, wanted);
        assert_eq!(serde_json::from_value::<PortPolicy>(json).unwrap(), policy);
        assert_eq!(parse_port("443 tls=false").unwrap().1.bits(), own::TLS);
        assert!(parse_port("443/udp").unwrap_err().contains("write 443/tls"));
        assert!(parse_port("443/tls tls=maybe").unwrap_err().contains("tls: "));
    }

    #[test]
    fn every_one_of_them_is_a_setting() {
        assert!(OWN.iter().all(|own| setting(own.name).is_some()));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".{0,60}") {
            let _ = parse_port(&text);
            let _ = parse_network(&text);
        }
    }
}
