//! Table of a policy's settings by name.
//! Own settings of ports and networks are parsed with the same table, which in turn parses them in
//! `port` and `cidr`.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use ws_guard_common::window::{Rate, SLOTS};

use super::{
    choice::{Action, EscalateTo, Fragments, OnFullFlows, OnFullSources},
    settings::PolicySettings,
};
use crate::domain::{
    address::{Given, Quoted},
    overrides::{NetworkPolicy, OWN, Overrides, Own, PortPolicy, TLS},
    setting::{Setting, closest, store, whole, word},
};

const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

/// Return one text, as `Setting::get` requires.
fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

/// Create a setting with one value.
const fn single(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(&mut PolicySettings, &str) -> Result<(), String>,
    get: fn(&PolicySettings) -> Vec<String>,
) -> Setting<PolicySettings> {
    Setting { name, value, help, many: false, seed: None, set, get, clear: |_| {} }
}

/// Add a further variable, besides `WS_GUARD_…`.
const fn seeded(
    mut setting: Setting<PolicySettings>,
    variable: &'static str,
) -> Setting<PolicySettings> {
    setting.seed = Some(variable);
    setting
}

/// Settings of a policy: flags of `run` and `policy set`, file keys, API fields.
pub static POLICY: [Setting<PolicySettings>; 27] = [
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
        "observe|defuse|drop|ban",
        "Action on pings over the limit: observe reports them, defuse turns each into a pong that the server ignores and paces the connection, drop drops the segments of connections over the limit, ban drops everything of the source, new connections too",
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
            "Length of the window in seconds, 1 to 3600; a throttle ends one window after the last ping over the limit",
            |p, text| store(&mut p.window_seconds, whole(text, 1, 3600)),
            |p| one(p.window_seconds),
        ),
        "WINDOW_SECONDS",
    ),
    single(
        "min-throttle-seconds",
        "S",
        "Minimum throttle duration in seconds, up to 604800; 0: as long as the window",
        |p, text| store(&mut p.min_throttle_seconds, whole(text, 0, 604_800)),
        |p| one(p.min_throttle_seconds),
    ),
    single(
        "escalate-after",
        "N",
        "Pings over the limit in one window after which a source gets escalate-to instead of a milder action; 0: never",
        |p, text| store(&mut p.escalate_after, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.escalate_after),
    ),
    single(
        "escalate-to",
        "drop|ban",
        "Action after escalate-after",
        |p, text| store(&mut p.escalate_to, word(text, &EscalateTo::WORDS)),
        |p| one(p.escalate_to.name()),
    ),
    single(
        "pace",
        "RATE|off",
        "Under defuse, hold the receive window of connections over the limit, so that those of one source together send at most this rate: 16KiB/s, 1MiB/s; off: do not hold it",
        |p, text| store(&mut p.pace, text.parse()),
        |p| one(p.pace),
    ),
    single(
        "ban-forced",
        "",
        "Apply ban also to trusted proxies, and to sources with other connections within the limit",
        |p, text| store(&mut p.ban_forced, word(text, &SWITCH)),
        |p| one(p.ban_forced),
    ),
    single(
        "max-ping-rate-per-connection",
        "N",
        "Pings a connection may send in any window; 0: no such limit",
        |p, text| {
            store(&mut p.max_ping_rate_per_connection, whole(text, 0, Rate::MAX_LIMIT as u64))
        },
        |p| one(p.max_ping_rate_per_connection),
    ),
    single(
        "connection-share",
        "N",
        "Pings that every connection may send in any window, whatever others of its source send, 0 to 64: for the heartbeats of many clients behind one address",
        |p, text| store(&mut p.connection_share, whole(text, 0, SLOTS as u64)),
        |p| one(p.connection_share),
    ),
    single(
        "max-pong-rate",
        "N",
        "PONG frames a connection may send in any window; 0: no such limit",
        |p, text| store(&mut p.max_pong_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_pong_rate),
    ),
    single(
        "max-empty-fragment-rate",
        "N",
        "Fragments without payload that a connection may send in any window; 0: no such limit",
        |p, text| store(&mut p.max_empty_fragment_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_empty_fragment_rate),
    ),
    single(
        "max-tiny-frame-rate",
        "N",
        "Data frames of at most tiny-frame-bytes that a connection may send in any window; 0: no such limit",
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
        "CLOSE frames a connection may send in any window; 0: no such limit",
        |p, text| store(&mut p.max_close_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_close_rate),
    ),
    single(
        "tls",
        "true|false",
        "The ports speak TLS: follow TLS records instead of frames; usually per port, --port 443/tls",
        |p, text| store(&mut p.tls, word(text, &SWITCH)),
        |p| one(p.tls),
    ),
    single(
        "max-record-rate",
        "N",
        "On TLS ports: records small enough for a ping that a connection may send in any window; 0: no such limit",
        |p, text| store(&mut p.max_record_rate, whole(text, 0, Rate::MAX_LIMIT as u64)),
        |p| one(p.max_record_rate),
    ),
    single(
        "record-bytes",
        "MIN-MAX",
        "On TLS ports: lengths of records that may hold a ping, as in their header",
        |p, text| store(&mut p.record_bytes, text.parse()),
        |p| one(p.record_bytes),
    ),
    single(
        "ipv4-prefix",
        "BITS",
        "Prefix length of an IPv4 source, 1 to 32",
        |p, text| store(&mut p.ipv4_prefix, whole(text, 1, 32)),
        |p| one(p.ipv4_prefix),
    ),
    single(
        "ipv6-prefix",
        "BITS",
        "Prefix length of an IPv6 source, 1 to 128",
        |p, text| store(&mut p.ipv6_prefix, whole(text, 1, 128)),
        |p| one(p.ipv6_prefix),
    ),
    single(
        "on-full-flows",
        "open|closed",
        "With a full flow table, let new connections through untracked (open) or refuse them (closed)",
        |p, text| store(&mut p.on_full_flows, word(text, &OnFullFlows::WORDS)),
        |p| one(p.on_full_flows.name()),
    ),
    single(
        "on-full-sources",
        "coarser|closed",
        "With a full source table, charge a new source's pings to a coarser prefix (coarser) or allow only its connections' share (closed)",
        |p, text| store(&mut p.on_full_sources, word(text, &OnFullSources::WORDS)),
        |p| one(p.on_full_sources.name()),
    ),
    Setting {
        name: "cidr",
        value: "NETWORK",
        help: "Network with settings of its own, as '10.0.0.0/8 max-ping-rate=100 action=observe'; the longest prefix that covers a source applies",
        many: true,
        seed: None,
        set: |p, text| {
            p.add_cidr(parse_network(text)?);
            Ok(())
        },
        get: |p| p.cidrs.iter().map(NetworkPolicy::text).collect(),
        clear: |p| p.cidrs.clear(),
    },
    Setting {
        name: "trusted-proxy",
        value: "CIDR|private|none",
        help: "Proxy trusted to name a request's client, by PROXY protocol, Forwarded or X-Forwarded-For; private: all private, shared, loopback and link-local addresses",
        many: true,
        seed: None,
        set: |p, text| p.trusted_proxies.add(text),
        get: |p| p.trusted_proxies.texts(),
        clear: |p| p.trusted_proxies.clear(),
    },
    Setting {
        name: "client-from",
        value: "HEADER",
        help: "Header in which a trusted proxy names the client, at most two",
        many: true,
        seed: None,
        set: |p, text| p.client_from.add(text),
        get: |p| p.client_from.texts(),
        clear: |p| p.client_from.clear(),
    },
    single(
        "fragments",
        "drop|pass",
        "Segments to a protected port in IP fragments, or after headers that hide them: drop them, or pass them uncounted",
        |p, text| store(&mut p.fragments, word(text, &Fragments::WORDS)),
        |p| one(p.fragments.name()),
    ),
];

impl PolicySettings {
    /// Return the settings that differ, as `name: old → new`.
    pub fn differences(&self, new: &PolicySettings) -> Vec<String> {
        let differs = |setting: &&Setting<_>| (setting.get)(self) != (setting.get)(new);
        let text = |setting: &Setting<_>| {
            let (old, new) = ((setting.get)(self), (setting.get)(new));
            format!("{}: {} → {}", setting.name, old.join(","), new.join(","))
        };
        POLICY.iter().filter(differs).map(text).collect()
    }

    /// Apply the changes from `before` to `after`, and keep everything else.
    /// Networks are left out: they are stored as rules, each with its origin.
    pub fn merge(&mut self, before: &PolicySettings, after: &PolicySettings) {
        for setting in POLICY.iter().filter(|setting| setting.name != "cidr") {
            if (setting.get)(before) != (setting.get)(after) {
                setting.copy(after, self);
            }
        }
    }
}

fn setting(name: &str) -> Option<&'static Setting<PolicySettings>> {
    POLICY.iter().find(|setting| setting.name == name)
}

impl Overrides {
    /// Set one of a network's or a port's own settings from text.
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

    /// Return those of `policy`'s settings that `bits` select.
    pub fn of(bits: u32, policy: &PolicySettings) -> Overrides {
        let named = OWN.iter().filter(|own| bits & own.bit != 0);
        let text = |own: &Own| Some((own.name, (setting(own.name)?.get)(policy).join(",")));
        Overrides(named.filter_map(text).collect())
    }

    /// Return `policy` with these settings in place of its own.
    pub fn over(&self, policy: &PolicySettings) -> PolicySettings {
        let mut policy = policy.clone();
        for (name, text) in &self.0 {
            if let Some(setting) = setting(name) {
                setting.replace(&mut policy, &[text]);
            }
        }
        policy
    }

    /// Parse `SETTING=VALUE` words.
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

    /// Parse the fields of a JSON object; all errors are returned.
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

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Overrides, D::Error> {
        let fields = serde_json::Map::deserialize(deserializer)?;
        Overrides::from_fields(fields.iter(), false).map_err(|e| D::Error::custom(e.join("; ")))
    }
}

/// Parse `PORT[/tls] [SETTING=VALUE…]`.
pub fn parse_port(text: &str) -> Result<(u16, Overrides), String> {
    let (target, settings) = target(text);
    let (port, protocol) = target.split_once('/').map_or((target, None), |(a, b)| (a, Some(b)));
    let port = whole(port, 1, 65_535)?;
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

/// Parse `CIDR SETTING=VALUE…`.
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
    use ws_guard_common::maps::own;

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
