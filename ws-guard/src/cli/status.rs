//! `ws-guard status`.

use std::{fmt::Write as _, time::Duration};

use clap::Args;

use super::{
    Global,
    backend::Backend,
    output::{Listing, plural, show, span},
};
use crate::{
    domain::{
        policy::Action,
        status::{ConfigStatus, Status},
    },
    guard::{Attachment, Mode, Role},
};

/// Pods listed one by one; more share a line.
const LISTED_PODS: usize = 8;

#[derive(Args)]
pub struct StatusCommand {
    #[command(flatten)]
    listing: Listing,
}

impl StatusCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let read = async || Backend::connect(global).await?.status().await;
        show(&self.listing, read, text).await
    }
}

/// Format one fact per line; `wide` adds rarely needed ones.
fn text(status: &Status, wide: bool) -> String {
    let mut lines: Vec<(&str, String)> = vec![("version", status.version.clone())];
    lines.push(("daemon", daemon(status)));
    lines.push(("pins", status.pin_dir.clone()));
    lines.extend(interfaces(status, wide));
    lines.extend(policy(status));
    let packets = status.packets;
    lines.push((
        "packets",
        format!(
            "{} seen, {} tracked, {} pings defused, {} dropped",
            packets.seen, packets.tracked, packets.defused, packets.dropped
        ),
    ));
    let drops = status.drops.iter().filter(|(_, count)| wide || **count > 0);
    lines.extend(drops.map(|(reason, count)| ("dropped", format!("{reason}: {count}"))));
    lines.push(("sources", format!("{}, {} throttled", status.sources, status.throttled)));
    let states = status.flow_states;
    lines.push((
        "flows",
        format!(
            "{} open, {} unsynced, {} closed, {} handshakes, {} paced",
            states.open, states.unsynced, states.closed, states.handshake, states.paced
        ),
    ));
    let suspects = status.proxies_suspected.iter();
    lines.extend(
        suspects.map(|suspect| {
            ("proxy?", format!("{}: {suspect}; {}", suspect.peer, suspect.remedy()))
        }),
    );
    for (name, table) in status.tables.named() {
        let full = table.entries >= table.capacity;
        if wide || full {
            let note = if full { " (full)" } else { "" };
            lines.push(("table", format!("{name}: {} of {}{note}", table.entries, table.capacity)));
        }
    }
    let events = status.events;
    if wide || events.lost + events.suppressed > 0 {
        let text = format!("{} lost, {} suppressed", events.lost, events.suppressed);
        lines.push(("events", text));
    }
    lines.extend(status.config.iter().flat_map(config));
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:width$}  {value}");
        text
    })
}

fn daemon(status: &Status) -> String {
    let up = |seconds| span(Duration::from_secs(seconds));
    match (status.pid, status.uptime_seconds) {
        (Some(pid), Some(seconds)) => format!("pid {pid}, up {}", up(seconds)),
        (Some(pid), None) => format!("pid {pid}"),
        (None, _) if status.interfaces.is_empty() => "down; nothing is attached".into(),
        (None, _) => "down; read from the pins, protection is in force".into(),
    }
}

/// Format a line per interface; many pods, all attached, share one, unless `wide`.
fn interfaces(status: &Status, wide: bool) -> Vec<(&'static str, String)> {
    let attached = |a: &Attachment| a.ingress.is_some() && a.egress.is_some();
    let pods = status.interfaces.iter().filter(|a| a.role == Role::Pod && attached(a)).count();
    let summed_up = !wide && pods > LISTED_PODS;
    let mode = |mode: Option<Mode>| mode.map_or("waiting", Mode::name);
    let listed =
        status.interfaces.iter().filter(|a| !summed_up || a.role != Role::Pod || !attached(a));
    let mut lines: Vec<_> = listed
        .map(|a| {
            let (ingress, egress) = (mode(a.ingress), mode(a.egress));
            let role = a.role.name();
            ("interface", format!("{}: {role}, ingress {ingress}, egress {egress}", a.name))
        })
        .collect();
    if summed_up {
        lines.push(("interface", format!("{pods} pods attached; -o wide lists them")));
    }
    let idle = status.patterns.iter().filter(|pattern| wide || pattern.interfaces == 0);
    lines.extend(idle.map(|p| {
        let matches = plural(p.interfaces, "interface", "interfaces");
        ("pattern", format!("{}: {}, {matches}", p.pattern, p.role.name()))
    }));
    lines
}

fn policy(status: &Status) -> Vec<(&'static str, String)> {
    let policy = &status.policy;
    let ports: Vec<String> = policy.ports.iter().map(u16::to_string).collect();
    let mut limit =
        format!("{} pings in any {} s a source", policy.max_ping_rate, policy.window_seconds);
    if policy.max_ping_rate_per_connection > 0 {
        limit += &format!(", {} a connection", policy.max_ping_rate_per_connection);
    }
    if policy.connection_share > 0 {
        limit += &format!(", but for {} of each connection", policy.connection_share);
    }
    let action = match policy.action {
        Action::Defuse if policy.pace.to_kernel() > 0 => {
            format!("defuse and pace ({})", policy.pace)
        }
        action => action.name().into(),
    };
    vec![
        ("ports", ports.join(", ")),
        ("policy", format!("{action} above {limit}")),
        ("proxies", format!("{} trusted", policy.trusted_proxies.texts().join(", "))),
    ]
}

fn config(config: &ConfigStatus) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(file) = &config.file {
        lines.push(("config", file.clone()));
    }
    let errors = config.errors.iter().flatten();
    lines.extend(errors.map(|error| ("config", format!("not reloaded: {error}"))));
    lines.extend(config.overrides.iter().map(|change| ("override", change.clone())));
    if !config.restart_needed.is_empty() {
        lines.push(("restart", format!("needed for {}", config.restart_needed.join(", "))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        flow::FlowStates,
        policy::PolicySettings,
        status::{EventLoss, Occupancy, Packets, PatternStatus, Tables},
    };

    fn status() -> Status {
        let occupancy = |entries| Occupancy { entries, capacity: 10 };
        Status {
            version: "0.1.0".into(),
            pid: None,
            pin_dir: "/sys/fs/bpf/g".into(),
            uptime_seconds: None,
            interfaces: vec![Attachment {
                name: "eth0".into(),
                role: Role::Uplink,
                ingress: Some(Mode::XdpNative),
                egress: None,
            }],
            patterns: Vec::new(),
            policy: PolicySettings { ports: vec![80, 443], ..PolicySettings::default() },
            packets: Packets { seen: 9, tracked: 5, defused: 1, dropped: 2 },
            drops: [("gap".to_string(), 2), ("early".to_string(), 0)].into(),
            sources: 10,
            throttled: 1,
            flows: 2,
            flow_states: FlowStates { open: 2, ..FlowStates::default() },
            proxies_suspected: Vec::new(),
            tables: Tables {
                flows: occupancy(2),
                sources: occupancy(10),
                pending: occupancy(0),
                proven: occupancy(0),
                rules: occupancy(0),
                midstream: occupancy(0),
                coarse: occupancy(0),
            },
            events: EventLoss { lost: 0, suppressed: 0 },
            config: None,
        }
    }

    #[test]
    fn a_status_in_a_screen() {
        assert_eq!(
            text(&status(), false),
            "\
version    0.1.0
daemon     down; read from the pins, protection is in force
pins       /sys/fs/bpf/g
interface  eth0: uplink, ingress xdp-native, egress waiting
ports      80, 443
policy     defuse and pace (16KiB/s) above 30 pings in any 10 s a source, but for 5 of each connection
proxies    private trusted
packets    9 seen, 5 tracked, 1 pings defused, 2 dropped
dropped    gap: 2
sources    10, 1 throttled
flows      2 open, 0 unsynced, 0 closed, 0 handshakes, 0 paced
table      sources: 10 of 10 (full)
"
        );
    }

    #[test]
    fn many_pods_share_a_line() {
        let pod = |n: usize| Attachment {
            name: format!("cali{n}"),
            role: Role::Pod,
            ingress: Some(Mode::Tcx),
            egress: (n != 3).then_some(Mode::Tcx),
        };
        let mut status = status();
        status.patterns.push(PatternStatus {
            pattern: "lxc*".into(),
            role: Role::Pod,
            interfaces: 0,
        });
        status.interfaces.extend((0..10).map(pod));
        let said = text(&status, false);
        for line in [
            "interface  eth0: uplink, ingress xdp-native, egress waiting\n",
            "interface  cali3: pod, ingress tcx, egress waiting\n",
            "interface  9 pods attached; -o wide lists them\n",
            "pattern    lxc*: pod, 0 interfaces\n",
        ] {
            assert!(said.contains(line), "{line} in {said}");
        }
        assert_eq!(said.matches("cali").count(), 1, "{said}");
        assert_eq!(text(&status, true).matches("cali").count(), 10);
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(status()).unwrap();
        for field in
            ["version", "pid", "interfaces", "policy", "packets", "sources", "throttled", "flows"]
        {
            assert!(json.get(field).is_some(), "{field} is missing in {json}");
        }
        assert_eq!(json["interfaces"][0]["ingress"], "xdp-native");
        assert!(json["pid"].is_null() && json["interfaces"][0]["egress"].is_null());
    }
}
