//! State of the guard at one moment, and rates between two.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    cli::{Global, backend::Backend},
    domain::{
        clock::Timestamp,
        flow::FlowView,
        source::{SourceState, SourceView},
        status::Status,
    },
};

/// All listings, read one after the other.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub time: Timestamp,
    pub status: Status,
    pub sources: Vec<SourceView>,
    pub flows: Vec<FlowView>,
}

impl Sample {
    /// Read from the daemon, or without one from the pins.
    pub async fn take(global: &Global) -> anyhow::Result<Sample> {
        let backend = Backend::connect(global).await?;
        Ok(Sample {
            status: backend.status().await?,
            flows: backend.flows().await?,
            sources: backend.sources(None).await?,
            at: Instant::now(),
            time: Timestamp::now(),
        })
    }
}

/// Identity of a client: its source, and the port on which it is counted.
pub type ClientKey = (String, Option<u16>);

/// A client with its rates per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub view: SourceView,
    pub pings_per_second: f64,
    pub defused_per_second: f64,
    pub dropped_per_second: f64,
    /// Slowest latest heartbeat of its open connections; null without a measurement.
    pub heartbeat_rtt_us: Option<u32>,
}

impl Row {
    pub fn key(&self) -> ClientKey {
        key(&self.view)
    }

    pub fn is_throttled(&self) -> bool {
        self.view.state == SourceState::Throttled
    }
}

fn key(view: &SourceView) -> ClientKey {
    (view.source.clone(), view.port)
}

/// Packets per second, by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Verdicts {
    pub seen: f64,
    pub tracked: f64,
    pub defused: f64,
    pub dropped: f64,
    /// Pings of all clients.
    pub pings: f64,
}

/// Latest heartbeats of open connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Heartbeats {
    /// Connections with a measured heartbeat.
    pub connections: usize,
    pub median_us: Option<u32>,
    pub p99_us: Option<u32>,
    pub slowest_us: Option<u32>,
}

impl Heartbeats {
    fn of(flows: &[FlowView]) -> Heartbeats {
        let open = flows.iter().filter(|flow| flow.state != "closed");
        let mut times: Vec<u32> = open.filter_map(|flow| flow.heartbeat_rtt_us).collect();
        times.sort_unstable();
        // Nearest rank: a value that was measured.
        let rank = |percent: usize| {
            times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        Heartbeats {
            connections: times.len(),
            median_us: rank(50),
            p99_us: rank(99),
            slowest_us: times.last().copied(),
        }
    }
}

/// Rates between two samples.
#[derive(Clone, Debug)]
pub struct Rates {
    pub time: Timestamp,
    /// Time between the two; zero with only one, when all rates are 0.
    pub span: Duration,
    pub status: Status,
    pub verdicts: Verdicts,
    pub heartbeats: Heartbeats,
    pub rows: Vec<Row>,
    pub flows: Vec<FlowView>,
}

impl Rates {
    /// Compute rates between two samples; without an earlier one, all are 0.
    pub fn between(before: Option<&Sample>, now: Sample) -> Rates {
        let span = before.map_or(Duration::ZERO, |before| now.at.duration_since(before.at));
        let per_second = |before: Option<u64>, now: u64| match (before, span.is_zero()) {
            (_, true) => 0.0,
            // A counter that fell was reset, and a new client starts at 0.
            (before, false) => {
                let from = before.filter(|before| *before <= now).unwrap_or(0);
                (now - from) as f64 / span.as_secs_f64()
            }
        };
        let known: HashMap<ClientKey, &SourceView> = before
            .into_iter()
            .flat_map(|before| before.sources.iter().map(|view| (key(view), view)))
            .collect();
        let slowest = slowest(&now.flows);
        let row = |view: SourceView| {
            let old = known.get(&key(&view));
            Row {
                pings_per_second: per_second(old.map(|old| old.pings_total), view.pings_total),
                defused_per_second: per_second(old.map(|o| o.defused_total), view.defused_total),
                dropped_per_second: per_second(old.map(|o| o.dropped_total), view.dropped_total),
                heartbeat_rtt_us: slowest.get(&view.source).copied(),
                view,
            }
        };
        let rows: Vec<Row> = now.sources.into_iter().map(row).collect();
        let packets = now.status.packets;
        let old = before.map(|before| before.status.packets);
        Rates {
            time: now.time,
            span,
            verdicts: Verdicts {
                seen: per_second(old.map(|old| old.seen), packets.seen),
                tracked: per_second(old.map(|old| old.tracked), packets.tracked),
                defused: per_second(old.map(|old| old.defused), packets.defused),
                dropped: per_second(old.map(|old| old.dropped), packets.dropped),
                pings: rows.iter().map(|row| row.pings_per_second).sum(),
            },
            heartbeats: Heartbeats::of(&now.flows),
            status: now.status,
            rows,
            flows: now.flows,
        }
    }
}

/// Return the slowest of the latest heartbeats by source.
fn slowest(flows: &[FlowView]) -> HashMap<String, u32> {
    let mut slowest: HashMap<String, u32> = HashMap::new();
    for flow in flows.iter().filter(|flow| flow.state != "closed") {
        if let (Some(source), Some(rtt)) = (&flow.source, flow.heartbeat_rtt_us) {
            let known = slowest.entry(source.clone()).or_default();
            *known = rtt.max(*known);
        }
    }
    slowest
}

#[cfg(test)]
mod tests {
    use super::super::testing::{flow, sample, source};
    use super::*;

    #[test]
    fn rates_are_differences_by_time() {
        let mut before = sample(vec![source("10.77.0.1", 100), source("10.77.0.2", 900)]);
        before.status.packets.defused = 50;
        let mut now = sample(vec![
            source("10.77.0.1", 150),
            // One removed and inserted again meanwhile, and a new one.
            source("10.77.0.2", 40),
            source("10.77.0.3", 20),
        ]);
        now.at = before.at + Duration::from_secs(2);
        now.status.packets.defused = 60;
        now.sources[0].defused_total = 30;
        let rates = Rates::between(Some(&before), now);
        let pings: Vec<f64> = rates.rows.iter().map(|row| row.pings_per_second).collect();
        assert_eq!(pings, [25.0, 20.0, 10.0]);
        assert_eq!((rates.verdicts.pings, rates.verdicts.defused), (55.0, 5.0));
        assert_eq!((rates.rows[0].defused_per_second, rates.verdicts.dropped), (15.0, 0.0));
    }

    #[test]
    fn a_source_on_two_ports_is_two_clients() {
        let on = |port, pings| SourceView { port, ..source("10.77.0.1", pings) };
        let before = sample(vec![on(None, 10), on(Some(8443), 1_000)]);
        let mut now = sample(vec![on(Some(8443), 1_003), on(None, 11)]);
        now.at = before.at + Duration::from_secs(1);
        let rates = Rates::between(Some(&before), now);
        let pings: Vec<f64> = rates.rows.iter().map(|row| row.pings_per_second).collect();
        assert_eq!(pings, [3.0, 1.0]);
    }

    #[test]
    fn one_sample_has_no_rates() {
        let rates = Rates::between(None, sample(vec![source("10.77.0.1", 100)]));
        assert_eq!((rates.rows[0].pings_per_second, rates.span), (0.0, Duration::ZERO));
    }

    #[test]
    fn heartbeats_are_of_open_connections_and_the_slowest_is_the_clients() {
        let mut one = sample(vec![source("10.77.0.1", 1), source("10.77.0.2", 1)]);
        one.flows = (1..=100).map(|n| flow("10.77.0.1", n, Some(u32::from(n) * 10))).collect();
        one.flows[99].state = "closed".into();
        one.flows.push(flow("10.77.0.2", 1, None));
        let rates = Rates::between(None, one);
        assert_eq!(
            rates.heartbeats,
            Heartbeats {
                connections: 99,
                median_us: Some(500),
                p99_us: Some(990),
                slowest_us: Some(990)
            }
        );
        assert_eq!(rates.rows[0].heartbeat_rtt_us, Some(990));
        assert_eq!(rates.rows[1].heartbeat_rtt_us, None);
    }
}
