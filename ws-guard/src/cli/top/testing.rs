//! Samples for tests.

use std::{collections::BTreeMap, sync::LazyLock, time::Instant};

use ws_guard_common::{flow::state, maps::FlowKey};

use super::{model::Model, sample::Sample};
use crate::domain::{
    clock::Timestamp,
    flow::{FlowStates, FlowView},
    policy::PolicySettings,
    source::{SourceState, SourceView},
    status::{EventLoss, Occupancy, Packets, Status, Tables},
};

pub fn source(name: &str, pings: u64) -> SourceView {
    SourceView::sample(name, pings)
}

pub fn flow(source: &str, port: u16, rtt: Option<u32>) -> FlowView {
    let end = format!("10.77.0.1:{port}").parse().unwrap();
    let key = FlowKey::new(end, "10.77.0.254:9001".parse().unwrap());
    FlowView {
        state: "open".into(),
        source: Some(source.into()),
        heartbeat_rtt_us: rtt,
        ..FlowView::without_flow(&key, state::HANDSHAKE)
    }
}

fn status() -> Status {
    let empty = Occupancy { entries: 0, capacity: 64 };
    Status {
        version: "0.1.0".into(),
        pid: Some(4711),
        pin_dir: "/sys/fs/bpf/ws-guard".into(),
        uptime_seconds: Some(60),
        interfaces: Vec::new(),
        patterns: Vec::new(),
        policy: PolicySettings::default(),
        packets: Packets { seen: 0, tracked: 0, defused: 0, dropped: 0 },
        drops: BTreeMap::new(),
        sources: 3,
        throttled: 1,
        flows: 3,
        flow_states: FlowStates::default(),
        proxies_suspected: Vec::new(),
        tables: Tables {
            flows: empty,
            sources: empty,
            pending: empty,
            proven: empty,
            rules: empty,
            midstream: empty,
            coarse: empty,
        },
        events: EventLoss { lost: 0, suppressed: 0 },
        config: None,
    }
}

/// Time of all samples, unless a test says otherwise.
static MOMENT: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn sample(sources: Vec<SourceView>) -> Sample {
    Sample { at: *MOMENT, time: Timestamp::now(), status: status(), sources, flows: Vec::new() }
}

/// Return a model of three clients, one of them throttled, read once.
pub fn model() -> Model {
    let throttled = SourceView { state: SourceState::Throttled, ..source("10.77.0.2", 9) };
    let mut model = Model::default();
    model.take(sample(vec![source("10.77.0.1", 10), throttled, source("fd77::/64", 8)]));
    model
}
