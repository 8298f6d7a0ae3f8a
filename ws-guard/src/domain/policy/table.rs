//! Every setting of a policy, by its name.

use ws_guard_common::window::{Rate, SLOTS};

use super::{Action, EscalateTo, Fragments, OnFullFlows, OnFullSources, PolicySettings};
use crate::domain::{
    overrides::{NetworkPolicy, PortPolicy, parse_network, parse_port},
    setting::{Setting, store, whole, word},
};

const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

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
