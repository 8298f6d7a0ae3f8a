//! What the server counts. No label is an address or an identity: see the access log for those.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{negotiation::metrics::ByProtocol, stall::Level};

/// Regions that get a time series of their own; who names more of them is `other`.
const REGIONS: usize = 64;

/// The regions that clients have named: few, however many they make up.
#[derive(Debug, Default)]
pub struct Regions(Mutex<HashSet<Arc<str>>>);

impl Regions {
    /// The label for a region.
    pub fn intern(&self, region: Option<&str>) -> Arc<str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut label = region.unwrap_or("unknown");
        if let Some(label) = known.get(label) {
            return label.clone();
        }
        if region.is_some() && known.len() >= REGIONS {
            label = "other";
        }
        let label: Arc<str> = label.into();
        known.insert(label.clone());
        label
    }
}

/// Counters of all shards together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Live connections by state and region.
    pub connections: IntGaugeVec,
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
        let help = "Bytes that connections hold in buffers: parts of messages, and output.";
        let buffered = IntGauge::new("wsguard_server_buffered_bytes", help)?;
        registry.register(Box::new(buffered.clone()))?;
        let help = "Threads that serve connections, by stall level: calm, refuse, shed.";
        let threads = IntGaugeVec::new(Opts::new("wsguard_server_threads", help), &["level"])?;
        registry.register(Box::new(threads.clone()))?;
        let stalls = counters(
            "wsguard_server_stall_changes_total",
            "Changes to a level: calm, refuse (new connections), shed (idle ones).",
            "level",
        )?;
        for level in Level::ALL {
            // A series that begins with its first event hides that event from rate().
            stalls.with_label_values(&[level.name()]);
            threads.with_label_values(&[level.name()]);
        }
        Ok(Metrics {
            connections,
            threads,
            stalls,
            by_protocol: ByProtocol::new(registry)?,
            buffered,
            scheduling_delay,
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
        let regions = Regions::default();
        assert_eq!(&*regions.intern(None), "unknown");
        for number in 0..REGIONS - 1 {
            let name = format!("r{number}");
            assert_eq!(*regions.intern(Some(&name)), *name);
        }
        assert_eq!(&*regions.intern(Some("one-more")), "other");
        assert_eq!(&*regions.intern(Some("r7")), "r7");
        assert_eq!(&*regions.intern(None), "unknown");
    }
}
