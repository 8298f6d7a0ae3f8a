//! What the server counts. No label is an address or an identity: see the access log for those.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use super::{
    negotiation::metrics::ByProtocol,
    stall::{Beside, Level},
};

/// Regions that get a time series of their own; who names more of them is `other`.
const REGIONS: usize = 64;

/// What is counted of the connections of a region.
#[derive(Debug)]
pub struct Region {
    name: Box<str>,
    pub open: IntCounter,
    pub message: IntCounter,
    pub close: IntCounter,
    pub error: IntCounter,
}

impl Region {
    /// The label.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The regions that clients have named: few, however many they make up.
#[derive(Debug, Default)]
pub struct Regions(Mutex<HashMap<Box<str>, Arc<Region>>>);

impl Regions {
    /// The region that a client names, if it names one.
    pub fn intern(&self, region: Option<&str>, metrics: &Metrics) -> Arc<Region> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut label = region.unwrap_or("unknown");
        if let Some(region) = known.get(label) {
            return region.clone();
        }
        if region.is_some() && known.len() >= REGIONS {
            label = "other";
        }
        let event = |event: &str| metrics.events.with_label_values(&[event, label]);
        let region = Arc::new(Region {
            name: label.into(),
            open: event("open"),
            message: event("message"),
            close: event("close"),
            error: event("error"),
        });
        known.insert(label.into(), region.clone());
        region
    }
}

/// Counters of all shards together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Live connections by state and region.
    pub connections: IntGaugeVec,
    /// What happens to connections, by region: see [`Region`].
    pub events: IntCounterVec,
    /// What waits to be written once messages were read.
    pub queue_bytes: Histogram,
    pub opened: IntCounter,
    pub closed: IntCounterVec,
    pub by_protocol: ByProtocol,
    pub refused: IntCounterVec,
    pub handshake_seconds: Histogram,
    pub messages_in: IntCounter,
    pub messages_out: IntCounter,
    pub bytes_in: IntCounter,
    pub bytes_out: IntCounter,
    pub pings_answered: IntCounter,
    pub pings_over_limit: IntCounter,
    pub pings_passed_over: IntCounter,
    pub pings_sent: IntCounter,
    pub protocol_errors: IntCounterVec,
    /// Bytes that connections hold in buffers.
    pub buffered: IntGauge,
    /// How late a thread's canary woke.
    pub scheduling_delay: Histogram,
    /// What of that was charged to a connection.
    pub charged: Counter,
    /// From a ping's arrival to its pong.
    pub pong_seconds: Histogram,
    pub reconnects: IntCounter,
    pub ping_interval: Gauge,
    pub stalls: IntCounterVec,
    /// Threads by the level that they are at.
    pub threads: IntGaugeVec,
}

impl Metrics {
    /// Make the metrics, and register them.
    pub fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<_> {
            let vec = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<_> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let connections = IntGaugeVec::new(
            Opts::new("websocket_connections_total", "Live connections by state and region."),
            &["state", "region"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        let events = IntCounterVec::new(
            Opts::new(
                "wsguard_server_events_total",
                "What happened to connections: open, message, error, close; by region.",
            ),
            &["event", "region"],
        )?;
        registry.register(Box::new(events.clone()))?;
        let queue_bytes = HistogramOpts::new(
            "wsguard_server_message_queue_bytes",
            "Bytes that waited to be written on a connection after messages were read from it.",
        );
        let queue_bytes =
            Histogram::with_opts(queue_bytes.buckets(vec![0.0, 1e3, 4e3, 16e3, 64e3, 256e3, 1e6]))?;
        registry.register(Box::new(queue_bytes.clone()))?;
        let stalls = IntCounterVec::new(
            Opts::new(
                "wsguard_server_stall_changes_total",
                "Changes to a level: calm, refuse (new connections), shed (idle ones); with what went on beside it: quiet, surge (many new connections), reconnects (most of them came back), queues.",
            ),
            &["level", "beside"],
        )?;
        registry.register(Box::new(stalls.clone()))?;
        let buckets = prometheus::exponential_buckets(0.000_25, 4.0, 9)?;
        let handshake_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "wsguard_server_handshake_seconds",
                "From the TCP connection to the 101.",
            )
            .buckets(buckets),
        )?;
        registry.register(Box::new(handshake_seconds.clone()))?;
        let messages = counters("wsguard_server_messages_total", "Whole messages.", "direction")?;
        let bytes = counters(
            "wsguard_server_bytes_total",
            "Bytes read and written behind the handshake.",
            "direction",
        )?;
        let pings = counters(
            "wsguard_server_pings_total",
            "Pings of clients: answered, over a limit, or passed over for a later one; and sent.",
            "what",
        )?;
        let buckets = prometheus::exponential_buckets(0.001, 2.0, 11)?;
        let help = "How late a thread wakes that slept for 10 ms.";
        let delay = HistogramOpts::new("wsguard_server_scheduling_delay_seconds", help);
        let scheduling_delay = Histogram::with_opts(delay.buckets(buckets))?;
        registry.register(Box::new(scheduling_delay.clone()))?;
        let help = "Delays of threads that one connection made, which is charged for them.";
        let charged = Counter::new("wsguard_server_charged_seconds_total", help)?;
        registry.register(Box::new(charged.clone()))?;
        let buckets = prometheus::exponential_buckets(0.001, 2.0, 11)?;
        let help = "From a client's ping to its pong, where the client was not what it waited for.";
        let pong_seconds = HistogramOpts::new("wsguard_server_pong_seconds", help);
        let pong_seconds = Histogram::with_opts(pong_seconds.buckets(buckets))?;
        registry.register(Box::new(pong_seconds.clone()))?;
        let help = "Silence of a client after which it is pinged.";
        let ping_interval = Gauge::new("wsguard_server_ping_interval_seconds", help)?;
        registry.register(Box::new(ping_interval.clone()))?;
        let help = "Bytes that connections hold in buffers: parts of messages, and output.";
        let buffered = IntGauge::new("wsguard_server_buffered_bytes", help)?;
        registry.register(Box::new(buffered.clone()))?;
        let help = "Threads that serve connections, by stall level: calm, refuse, shed.";
        let threads = IntGaugeVec::new(Opts::new("wsguard_server_threads", help), &["level"])?;
        registry.register(Box::new(threads.clone()))?;
        for level in Level::ALL {
            // A series that begins with its first event hides that event from rate().
            for beside in Beside::NAMES {
                stalls.with_label_values(&[level.name(), beside]);
            }
            threads.with_label_values(&[level.name()]);
        }
        Ok(Metrics {
            connections,
            threads,
            stalls,
            by_protocol: ByProtocol::new(registry)?,
            events,
            queue_bytes,
            buffered,
            scheduling_delay,
            charged,
            ping_interval,
            pong_seconds,
            reconnects: counter(
                "wsguard_server_reconnects_total",
                "Handshakes of clients whose connection ended in the last minute.",
            )?,
            handshake_seconds,
            opened: counter(
                "wsguard_server_opened_total",
                "Connections whose handshake was done.",
            )?,
            closed: counters(
                "wsguard_server_closed_total",
                "Connections that ended, by what ended them.",
                "cause",
            )?,
            refused: counters(
                "wsguard_server_refused_total",
                "TCP connections that did not become WebSocket connections, by reason.",
                "reason",
            )?,
            messages_in: messages.with_label_values(&["in"]),
            messages_out: messages.with_label_values(&["out"]),
            bytes_in: bytes.with_label_values(&["in"]),
            bytes_out: bytes.with_label_values(&["out"]),
            pings_answered: pings.with_label_values(&["answered"]),
            pings_over_limit: pings.with_label_values(&["over_limit"]),
            pings_passed_over: pings.with_label_values(&["passed_over"]),
            pings_sent: pings.with_label_values(&["sent"]),
            protocol_errors: counters(
                "wsguard_server_protocol_errors_total",
                "Connections closed because the client broke the protocol, by how.",
                "kind",
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_regions_are_others() {
        let (regions, metrics) = (Regions::default(), Metrics::new(&Registry::new()).unwrap());
        let label = |region: Option<&str>| regions.intern(region, &metrics).name().to_owned();
        assert_eq!(label(None), "unknown");
        for number in 0..REGIONS - 1 {
            let name = format!("r{number}");
            assert_eq!(label(Some(&name)), name);
        }
        assert_eq!(label(Some("one-more")), "other");
        assert_eq!(label(Some("r7")), "r7");
        assert_eq!(label(None), "unknown");
    }
}
