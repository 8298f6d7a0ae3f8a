//! The whole guard, as `status` shows it.

use serde::{Deserialize, Serialize};
use ws_guard_common::maps::{Counter, Counters};

use super::{clock::Timestamp, flow::FlowStates, policy::PolicySettings, suspects::SuspectedProxy};
use crate::guard::{Attachment, Role};

/// Why packets are dropped: label of the metric, field of the status.
pub const DROP_REASONS: [(Counter, &str); 14] = [
    (Counter::DroppedThrottled, "throttled"),
    (Counter::DroppedBeyond, "beyond_edge"),
    (Counter::DroppedPoliced, "policed"),
    (Counter::DroppedGap, "gap"),
    (Counter::DroppedNoCheckpoint, "no_checkpoint"),
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
    /// Of the daemon that answers; null when read from the pins.
    pub pid: Option<u32>,
    pub pin_dir: String,
    /// Of the daemon.
    pub uptime_seconds: Option<u64>,
    pub interfaces: Vec<Attachment>,
    /// Of the daemon: what it takes interfaces by.
    #[serde(default)]
    pub patterns: Vec<PatternStatus>,
    pub policy: PolicySettings,
    pub packets: Packets,
    /// Dropped packets by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Sources that sent a ping.
    pub sources: u32,
    /// How many of them are throttled now.
    pub throttled: u32,
    /// Connections that are open or unsynced.
    pub flows: u32,
    pub flow_states: FlowStates,
    /// Untrusted peers that seem to speak for many clients.
    #[serde(default)]
    pub proxies_suspected: Vec<SuspectedProxy>,
    pub tables: Tables,
    pub events: EventLoss,
    /// Of the daemon.
    pub config: Option<ConfigStatus>,
}

/// A pattern of names, and how many interfaces it brings now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternStatus {
    pub pattern: String,
    pub role: Role,
    pub interfaces: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// That client-side programs saw. One that passes two guarded interfaces is seen twice, and in all
    /// that follows counted once.
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
    /// Places of connections without a flow on which the server has spoken; the oldest give way.
    pub proven: Occupancy,
    pub rules: Occupancy,
    /// Connections without a flow on which a server sent data; the oldest give way.
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
    /// The ring buffer was full.
    pub lost: u64,
    /// The kernel's rate limit held them back.
    pub suppressed: u64,
}

/// State of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The watched file.
    pub file: Option<String>,
    /// When the configuration in force was read.
    pub loaded: Option<Timestamp>,
    /// Why the latest reload was refused; null when it was not.
    pub errors: Option<Vec<String>>,
    /// Settings that changed in the file and wait for a restart.
    pub restart_needed: Vec<String>,
    /// What `policy set` changed against the configuration.
    pub overrides: Vec<String>,
}

/// One counter.
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

/// Dropped packets by reason.
pub fn drops(counters: &Counters) -> std::collections::BTreeMap<String, u64> {
    DROP_REASONS
        .iter()
        .map(|(reason, name)| (name.to_string(), counter(counters, *reason)))
        .collect()
}
