//! Whole guard, as in `status`.

use serde::{Deserialize, Serialize};
use ws_guard_common::maps::{Counter, Counters};

use super::{clock::Timestamp, flow::FlowStates, policy::PolicySettings, suspects::SuspectedProxy};
use crate::guard::{Attachment, Role};

/// Reasons of dropped packets: label of the metric, field of the status.
pub const DROP_REASONS: [(Counter, &str); 14] = [
    (Counter::DroppedThrottled, "throttled"),
    (Counter::DroppedBeyond, "beyond_edge"),
    (Counter::DroppedPoliced, "policed"),
    (Counter::DroppedGap, "gap"),
    (Counter::DroppedUntraced, "untraced"),
    (Counter::DroppedChanged, "changed"),
    (Counter::DroppedUnreadable, "unreadable"),
    (Counter::DroppedUnsynced, "unsynced"),
    (Counter::DroppedEarly, "early"),
    (Counter::DroppedUnseen, "request_unseen"),
    (Counter::DroppedForged, "forged"),
    (Counter::DroppedUrgent, "urgent"),
    (Counter::DroppedFragment, "fragment"),
    (Counter::DroppedHeaders, "headers"),
];

/// `status` in JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Process of the daemon that answers; null when read from the pins.
    pub pid: Option<u32>,
    pub pin_dir: String,
    /// Uptime of the daemon.
    pub uptime_seconds: Option<u64>,
    pub interfaces: Vec<Attachment>,
    /// Patterns by which the daemon selects interfaces.
    #[serde(default)]
    pub patterns: Vec<PatternStatus>,
    pub policy: PolicySettings,
    pub packets: Packets,
    /// Dropped packets by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Sources that sent a ping.
    pub sources: u32,
    /// Number of sources that are throttled now.
    pub throttled: u32,
    /// Connections that are open or unsynced.
    pub flows: u32,
    pub flow_states: FlowStates,
    /// Untrusted peers that seem to speak for many clients.
    #[serde(default)]
    pub proxies_suspected: Vec<SuspectedProxy>,
    pub tables: Tables,
    pub events: EventLoss,
    /// Configuration of the daemon.
    pub config: Option<ConfigStatus>,
}

/// Pattern of names, and the number of interfaces that it selects now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternStatus {
    pub pattern: String,
    pub role: Role,
    pub interfaces: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// Packets seen by client-side programs.
    /// One that passes two guarded interfaces is seen twice, but counted once in the following
    /// fields.
    pub seen: u64,
    /// Client segments with payload on a tracked flow.
    pub tracked: u64,
    /// Pings turned into pongs, each once.
    pub defused: u64,
    pub dropped: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    pub flows: Occupancy,
    pub sources: Occupancy,
    pub pending: Occupancy,
    /// Connections with a server's response but no flow; the oldest are evicted.
    pub proven: Occupancy,
    pub rules: Occupancy,
    /// Connections with a server's data but no flow; the oldest are evicted.
    pub midstream: Occupancy,
    /// Coarser prefixes that sources without room are charged to.
    pub coarse: Occupancy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    pub entries: u32,
    pub capacity: u32,
}

impl Tables {
    pub const COUNT: usize = 7;

    pub fn named(&self) -> [(&'static str, Occupancy); Self::COUNT] {
        [
            ("flows", self.flows),
            ("sources", self.sources),
            ("pending", self.pending),
            ("proven", self.proven),
            ("rules", self.rules),
            ("midstream", self.midstream),
            ("coarse", self.coarse),
        ]
    }
}

/// Lost or suppressed events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLoss {
    /// Events lost to a full ring buffer.
    pub lost: u64,
    /// Events suppressed by the kernel's rate limit.
    pub suppressed: u64,
}

/// State of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Watched file.
    pub file: Option<String>,
    /// Time at which the configuration in force was read.
    pub loaded: Option<Timestamp>,
    /// Reasons to refuse the latest reload; null if it was successful.
    pub errors: Option<Vec<String>>,
    /// Settings that changed in the file, but need a restart.
    pub restart_needed: Vec<String>,
    /// Differences from the configuration made by `policy set`.
    pub overrides: Vec<String>,
}

/// Return one counter.
pub fn counter(counters: &Counters, counter: Counter) -> u64 {
    counters.events.get(counter as usize).copied().unwrap_or(0)
}

impl Packets {
    pub fn new(counters: &Counters) -> Packets {
        Packets {
            seen: counter(counters, Counter::Seen),
            tracked: counter(counters, Counter::Tracked),
            defused: counter(counters, Counter::Defused),
            dropped: DROP_REASONS.iter().map(|(reason, _)| counter(counters, *reason)).sum(),
        }
    }
}

/// Return dropped packets by reason.
pub fn drops(counters: &Counters) -> std::collections::BTreeMap<String, u64> {
    DROP_REASONS
        .iter()
        .map(|(reason, name)| (name.to_string(), counter(counters, *reason)))
        .collect()
}
