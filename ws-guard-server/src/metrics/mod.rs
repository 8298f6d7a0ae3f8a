//! Metrics of the server, without addresses and identities: see the access log.

mod exemplars;
mod region;
mod tcp;

use prometheus::{
    Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    exponential_buckets,
};

pub use exemplars::{Exemplar, Exemplars, TracedCounters, TracedHistogram};
pub use region::{Region, Regions, Standee, Standing};
pub use tcp::TcpMetrics;

use super::{
    cause::Cause,
    negotiation::metrics::ByProtocol,
    protocol::ProtocolError,
    refusal::Refusal,
    register::Register,
    stall::{Circumstances, Level},
};

/// Reason for connections closed before their handshake, in place of a [`Refusal`].
pub const HANDSHAKES_FULL: &str = "handshakes_full";

const CHARGED: &str = "wsguard_server_charged_seconds_total";

/// Counters of all shards together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Live connections by state and region: see [`Standee`].
    pub live: IntGaugeVec,
    /// Connections that reached a state, by region.
    pub reached: IntCounterVec,
    /// Events of connections, by region: see [`Region`].
    pub events: IntCounterVec,
    /// Pending output in bytes after messages were read.
    pub queue_bytes: Histogram,
    pub opened: IntCounter,
    pub closed: TracedCounters,
    pub by_protocol: ByProtocol,
    pub refused: IntCounterVec,
    pub handshake_seconds: TracedHistogram,
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
    /// Delay of a thread's canary.
    pub scheduling_delay: Histogram,
    /// Part of that delay charged to connections.
    charged: Counter,
    charged_exemplars: Exemplars,
    /// Time from a ping's arrival to its pong.
    pub pong_seconds: TracedHistogram,
    pub tcp: TcpMetrics,
    pub reconnects: IntCounter,
    pub ping_interval: Gauge,
    pub stalls: IntCounterVec,
    /// Threads by their stall level.
    pub threads: IntGaugeVec,
}

impl Metrics {
    /// Create and register the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let register = Register::new(registry);
        let (stalls, threads) = stalls(register)?;
        let [messages_in, messages_out] =
            directions(register, "wsguard_server_messages_total", "Whole messages.")?;
        let [bytes_in, bytes_out] = directions(
            register,
            "wsguard_server_bytes_total",
            "Bytes read and written behind the handshake.",
        )?;
        let pings = register.counters(
            "wsguard_server_pings_total",
            "Pings of clients: answered, over a limit, or passed over for a later one; and sent.",
            &["what"],
        )?;
        let pings = |what: &str| pings.with_label_values(&[what]);
        Ok(Metrics {
            live: register.gauges(
                "wsguard_server_connections",
                "Live connections by state and region; suspect has not answered a ping in time.",
                &["state", "region"],
            )?,
            reached: register.counters(
                "websocket_connections_total",
                "Connections that reached a state, each once a state, by region; open is every connection.",
                &["state", "region"],
            )?,
            events: register.counters(
                "wsguard_server_events_total",
                "What happened to connections: open, message, error, close; by region.",
                &["event", "region"],
            )?,
            queue_bytes: register.histogram(
                "wsguard_server_message_queue_bytes",
                "Bytes that waited to be written on a connection after messages were read from it.",
                vec![0.0, 1e3, 4e3, 16e3, 64e3, 256e3, 1e6],
            )?,
            opened: register.counter(
                "wsguard_server_opened_total",
                "Connections whose handshake was done.",
            )?,
            closed: TracedCounters::new(
                register,
                "wsguard_server_closed_total",
                "Connections that ended, by what ended them.",
                "cause",
                &Cause::NAMES,
            )?,
            by_protocol: ByProtocol::new(registry)?,
            refused: register.counters_of(
                "wsguard_server_refused_total",
                "TCP connections that did not become WebSocket connections, by reason.",
                "reason",
                Refusal::ALL.map(Refusal::name).into_iter().chain([HANDSHAKES_FULL]),
            )?,
            handshake_seconds: TracedHistogram::new(
                register,
                "wsguard_server_handshake_seconds",
                "From the TCP connection to the 101.",
                exponential_buckets(0.000_25, 4.0, 9)?,
            )?,
            messages_in,
            messages_out,
            bytes_in,
            bytes_out,
            pings_answered: pings("answered"),
            pings_over_limit: pings("over_limit"),
            pings_passed_over: pings("passed_over"),
            pings_sent: pings("sent"),
            protocol_errors: register.counters_of(
                "wsguard_server_protocol_errors_total",
                "Connections closed because the client broke the protocol, by how.",
                "kind",
                ProtocolError::names(),
            )?,
            buffered: register.gauge(
                "wsguard_server_buffered_bytes",
                "Bytes that connections hold in buffers: parts of messages, and output.",
            )?,
            scheduling_delay: register.histogram(
                "wsguard_server_scheduling_delay_seconds",
                "How late a thread wakes that slept for 10 ms.",
                exponential_buckets(0.001, 2.0, 11)?,
            )?,
            charged_exemplars: Exemplars::single(CHARGED),
            charged: register.float_counter(
                CHARGED,
                "Delays of threads that one connection made, which is charged for them.",
            )?,
            pong_seconds: TracedHistogram::new(
                register,
                "wsguard_server_pong_seconds",
                "From a client's ping to its pong, where the client was not what it waited for.",
                exponential_buckets(0.001, 2.0, 11)?,
            )?,
            tcp: TcpMetrics::new(register)?,
            reconnects: register.counter(
                "wsguard_server_reconnects_total",
                "Handshakes of clients whose connection ended in the last minute.",
            )?,
            ping_interval: register.float_gauge(
                "wsguard_server_ping_interval_seconds",
                "Silence of a client after which it is pinged.",
            )?,
            stalls,
            threads,
        })
    }

    /// Charge a connection for a delay of its thread by this number of seconds.
    pub fn charge(&self, connection_id: u64, seconds: f64) {
        self.charged.inc_by(seconds);
        if seconds > 0.0 {
            self.charged_exemplars.offer(0, connection_id, seconds);
        }
    }

    /// Return the latest connection behind each sample, without its trace.
    pub(crate) fn exemplars(&self) -> Vec<Exemplar> {
        let histograms = [&self.handshake_seconds, &self.pong_seconds].into_iter();
        let all = histograms.chain(self.tcp.all()).map(|histogram| &histogram.exemplars);
        let all = all.chain([&self.closed.exemplars, &self.charged_exemplars]);
        all.flat_map(Exemplars::all).collect()
    }
}

/// Create counters by the label `direction`: in, out.
fn directions(
    register: Register<'_>,
    name: &str,
    help: &str,
) -> prometheus::Result<[IntCounter; 2]> {
    let counters = register.counters(name, help, &["direction"])?;
    Ok(["in", "out"].map(|direction| counters.with_label_values(&[direction])))
}

/// Create the counters of level changes and the gauge of threads, with all series.
fn stalls(register: Register<'_>) -> prometheus::Result<(IntCounterVec, IntGaugeVec)> {
    let stalls = register.counters(
        "wsguard_server_stall_changes_total",
        "Changes to a level: calm, refuse (new connections), shed (idle ones); with the circumstances: quiet, surge (many new connections), reconnects (most of them came back), queues.",
        &["level", "during"],
    )?;
    let threads = register.gauges(
        "wsguard_server_threads",
        "Threads that serve connections, by stall level: calm, refuse, shed.",
        &["level"],
    )?;
    for level in Level::ALL {
        for during in Circumstances::NAMES {
            stalls.with_label_values(&[level.name(), during]);
        }
        threads.with_label_values(&[level.name()]);
    }
    Ok((stalls, threads))
}
