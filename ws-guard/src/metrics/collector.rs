//! Collector of the kernel's maps and the daemon's figures, read at each scrape.

use std::time::UNIX_EPOCH;

use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};
use ws_guard_common::{
    frame::Violation,
    maps::{Counters, SCHEMA_VERSION},
};

use super::{
    catalogue::COUNTERS,
    families::{Labels, counters, gauges},
    servers::{self, Servers},
    top,
};
use crate::{
    domain::status::{Status, counter},
    guard::{GuardError, Overtaken},
    state::State,
};

/// Help of `wsguard_up`.
const UP: &str = "1 when the kernel's maps could be read at this scrape.";

/// Collector of all of a daemon's metrics.
pub struct GuardCollector {
    state: State,
    desc: Desc,
}

impl GuardCollector {
    pub fn new(state: State) -> prometheus::Result<GuardCollector> {
        // The registry needs one description to tell collectors apart; the families have their own.
        let desc = Desc::new("wsguard_up".into(), UP.into(), Vec::new(), Default::default())?;
        Ok(GuardCollector { state, desc })
    }

    fn read(&self) -> Result<Vec<MetricFamily>, GuardError> {
        let kernel = self.state.reader.maps.counters()?;
        let survey = self.state.surveys.recent(&self.state.reader)?;
        let status = self.state.status_with(&survey)?;
        let figures = self.state.reader.maps.servers()?;
        let servers = Servers { figures, silence: survey.silence.counts() };
        let mut families = families(&kernel, &servers, &status, &Daemon::of(&self.state));
        let most = self.state.config().settings.run.top_sources;
        if most > 0 {
            let prefixes = self.state.reader.source_views()?.prefixes();
            families.extend(top::family(&survey, &prefixes, most));
        }
        Ok(families)
    }
}

/// Figures of the daemon that no map holds.
#[derive(Default)]
pub struct Daemon {
    ready: bool,
    /// Reloads that took effect, and refused ones.
    reloads: (u64, u64),
    config_valid: bool,
    attachments_lost: u64,
    overtaken: Vec<Overtaken>,
    /// Events missed by the daemon, and by followers of the API.
    missed: (u64, u64),
    start_time_seconds: f64,
}

impl Daemon {
    fn of(state: &State) -> Daemon {
        let started = state.started_at().duration_since(UNIX_EPOCH).unwrap_or_default();
        Daemon {
            ready: state.ready().is_ok(),
            reloads: state.reloads(),
            config_valid: state.config().errors.is_none(),
            attachments_lost: state.attachments_lost(),
            overtaken: state.overtaken(),
            missed: (state.events_dropped(), state.events.missed()),
            start_time_seconds: started.as_secs_f64(),
        }
    }

    fn families(&self) -> Vec<MetricFamily> {
        let schema = SCHEMA_VERSION.to_string();
        let build: Labels<'_> = &[("schema", &schema), ("version", env!("CARGO_PKG_VERSION"))];
        vec![
            gauges(
                "ready",
                "1 while every wanted interface is attached and a policy is in force, as /readyz says.",
                &[(&[], f64::from(self.ready))],
            ),
            counters(
                "config_reload_total",
                "Reloads of the configuration: ok took effect, error left the old one in force.",
                &[(&[("result", "ok")], self.reloads.0), (&[("result", "error")], self.reloads.1)],
            ),
            gauges(
                "config_valid",
                "0 from a configuration that was refused until one takes effect: the old one stays in force.",
                &[(&[], f64::from(self.config_valid))],
            ),
            counters(
                "attachments_lost_total",
                "Attachments removed by others, counted per direction of an interface; see the log, and --reattach.",
                &[(&[], self.attachments_lost)],
            ),
            counters(
                "events_missed_total",
                "Events that left the kernel and were not seen: the daemon, or a follower of the API, read too slowly.",
                &[
                    (&[("reader", "daemon")], self.missed.0),
                    (&[("reader", "follower")], self.missed.1),
                ],
            ),
            gauges(
                "start_time_seconds",
                "When the daemon started, seconds since 1970. The kernel's counters are older: they outlive it.",
                &[(&[], self.start_time_seconds)],
            ),
            gauges(
                "build_info",
                "Version of the daemon, and of the layout of its pinned maps; always 1.",
                &[(build, 1.0)],
            ),
        ]
    }
}

impl Collector for GuardCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let read = self.read();
        let up = up(read.is_ok());
        let mut families = read.unwrap_or_else(|error| {
            tracing::error!("the maps cannot be read for a scrape: {error}");
            Vec::new()
        });
        families.push(up);
        families
    }
}

/// Return all families but `wsguard_up`, from figures of the kernel and the daemon.
pub fn families(
    kernel: &Counters,
    servers: &Servers,
    status: &Status,
    daemon: &Daemon,
) -> Vec<MetricFamily> {
    let mut families = from_catalogue(kernel);
    families.push(violations(kernel));
    families.extend(servers::families(servers));
    families.extend(tables(status));
    families.extend(policy(status));
    families.extend(attached(status, &daemon.overtaken));
    families.extend(daemon.families());
    families
}

/// Return `wsguard_up`: whether the maps could be read.
pub fn up(read: bool) -> MetricFamily {
    gauges("up", UP, &[(&[], f64::from(read))])
}

fn from_catalogue(kernel: &Counters) -> Vec<MetricFamily> {
    let family = |family: &super::catalogue::Family| {
        let labels: Vec<[(&str, &str); 1]> =
            family.samples.iter().map(|(_, value)| [(family.label, *value)]).collect();
        let samples: Vec<(Labels<'_>, u64)> = family
            .samples
            .iter()
            .zip(&labels)
            .map(|((which, _), label)| {
                let labels: Labels<'_> = if family.label.is_empty() { &[] } else { label };
                (labels, counter(kernel, *which))
            })
            .collect();
        counters(family.name, family.help, &samples)
    };
    COUNTERS.iter().map(family).collect()
}

fn violations(kernel: &Counters) -> MetricFamily {
    let sides = [("client", &kernel.violations_in), ("server", &kernel.violations_out)];
    let labels: Vec<([(&str, &str); 2], u64)> = sides
        .into_iter()
        .flat_map(|(side, counts)| {
            let label = move |kind: Violation| [("kind", kind.name()), ("side", side)];
            Violation::ALL.into_iter().zip(counts).map(move |(kind, count)| (label(kind), *count))
        })
        .collect();
    let samples: Vec<(Labels<'_>, u64)> =
        labels.iter().map(|(labels, count)| (labels.as_slice(), *count)).collect();
    counters(
        "violations_total",
        "Frames whose header violates RFC 6455, by what is wrong with it and whose it was.",
        &samples,
    )
}

fn tables(status: &Status) -> Vec<MetricFamily> {
    let named = status.tables.named();
    let labels = named.map(|(name, _)| [("table", name)]);
    let samples = |value: fn(&crate::domain::status::Occupancy) -> u32| {
        let values = named.iter().map(|(_, table)| f64::from(value(table)));
        labels.iter().map(|label| label.as_slice()).zip(values).collect::<Vec<_>>()
    };
    let states = status.flow_states;
    vec![
        gauges(
            "table_entries",
            "Entries in use. pending: requests without an answer; proven: those on connections on which the server has sent something; midstream: candidates for midstream pickup; coarse: coarser prefixes, charged for sources without room.",
            &samples(|table| table.entries),
        ),
        gauges("table_capacity", "Entries there is room for.", &samples(|table| table.capacity)),
        gauges(
            "flows",
            "Tracked connections by state; handshake waits for the server's answer.",
            &[
                (&[("state", "handshake")], f64::from(states.handshake)),
                (&[("state", "open")], f64::from(states.open)),
                (&[("state", "unsynced")], f64::from(states.unsynced)),
                (&[("state", "closed")], f64::from(states.closed)),
            ],
        ),
        gauges(
            "connections_paced",
            "Connections over the limit whose receive window is held now.",
            &[(&[], f64::from(states.paced))],
        ),
        gauges("sources", "Sources that sent a ping.", &[(&[], f64::from(status.sources))]),
        gauges(
            "sources_throttled",
            "Sources that are throttled now.",
            &[(&[], f64::from(status.throttled))],
        ),
        gauges(
            "proxies_suspected",
            "Peers that seem to speak for many clients and are no trusted proxies; `ws-guard status` names them, and the setting.",
            &[(&[], status.proxies_suspected.len() as f64)],
        ),
    ]
}

fn policy(status: &Status) -> Vec<MetricFamily> {
    let policy = &status.policy;
    let one = |name: &str, help: &str, value: f64| gauges(name, help, &[(&[], value)]);
    vec![
        one(
            "policy_max_ping_rate",
            "Pings a source may send in any window.",
            f64::from(policy.max_ping_rate),
        ),
        one("policy_window_seconds", "Length of the window.", f64::from(policy.window_seconds)),
        one(
            "policy_max_ping_rate_per_connection",
            "Pings a connection may send in any window; 0 is no such limit.",
            f64::from(policy.max_ping_rate_per_connection),
        ),
        one(
            "policy_connection_share",
            "Pings that every connection may send in any window, whatever its source has used.",
            f64::from(policy.connection_share),
        ),
        one(
            "policy_pace_bytes_per_second",
            "Bytes a second that the paced connections of a source may send together; 0 is off.",
            f64::from(policy.pace.to_kernel()),
        ),
        gauges(
            "policy_info",
            "The action on pings over the limit; always 1.",
            &[(&[("action", policy.action.name())], 1.0)],
        ),
    ]
}

fn attached(status: &Status, overtaken: &[Overtaken]) -> Vec<MetricFamily> {
    let mut info = Vec::new();
    let mut missing = Vec::new();
    let mut before = Vec::new();
    for attachment in &status.interfaces {
        for (direction, mode) in [("ingress", attachment.ingress), ("egress", attachment.egress)] {
            let (name, role) = (attachment.name.as_str(), attachment.role.name());
            let labels = [("direction", direction), ("interface", name), ("role", role)];
            let theirs = |one: &&Overtaken| one.interface == name && one.hook == direction;
            if let Some(mode) = mode {
                let [direction, interface, role] = labels;
                info.push([direction, interface, ("mode", mode.name()), role]);
                before.push((labels, overtaken.iter().filter(theirs).count() as f64));
            }
            missing.push((labels, mode.is_some()));
        }
    }
    let info: Vec<(Labels<'_>, f64)> = info.iter().map(|labels| (labels.as_slice(), 1.0)).collect();
    let up: Vec<(Labels<'_>, f64)> =
        missing.iter().map(|(labels, up)| (labels.as_slice(), f64::from(*up))).collect();
    let before: Vec<(Labels<'_>, f64)> =
        before.iter().map(|(labels, count)| (labels.as_slice(), *count)).collect();
    let families = [
        gauges("attach_info", "How each direction is attached; always 1.", &info),
        gauges(
            "interface_attached",
            "1 where a wanted interface is attached, 0 while it is waited for.",
            &up,
        ),
        gauges(
            "programs_before",
            "1 where a program of others runs before the guard's: what it accepts by itself is not seen.",
            &before,
        ),
    ];
    // The text format has no families without samples.
    families.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
}
