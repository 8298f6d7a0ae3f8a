//! Thread of the server: state, counters and log of its connections.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    access_log::{Closed, Line, What, timestamp},
    cause::Cause,
    charges::Turns,
    journal::Happened,
    negotiation,
    places::Places,
    record::{Ended, Origin, Totals},
    refusal::Refusal,
    service::Service,
    stall::Level,
    wheel::Wheel,
};
use crate::view::ConnectionView;

/// State shared by the connections of one thread.
pub struct Shard {
    pub service: Arc<Service>,
    pub wheel: Wheel,
    /// Places for work that takes more than a turn.
    pub places: Places,
    /// Recent turns of connections.
    pub turns: Turns,
    /// Stall level of this thread.
    pub(super) level: Cell<Level>,
    /// `true` if all its connections have to close.
    pub(super) closing: Cell<bool>,
    /// Number of accepted TCP connections.
    pub(super) accepted: Cell<u64>,
    /// Number of handshakes of reconnecting clients.
    pub(super) came_back: Cell<u64>,
    /// Longest time from a ping to its pong since the canary's last check.
    slowest_pong: Cell<Duration>,
    /// Reports of connections that were queried.
    pub reports: RefCell<Vec<ConnectionView>>,
}

impl Shard {
    pub(super) fn new(service: Arc<Service>) -> Shard {
        Shard {
            service,
            wheel: Wheel::default(),
            places: Places::default(),
            turns: Turns::new(Instant::now()),
            level: Cell::default(),
            closing: Cell::default(),
            accepted: Cell::default(),
            came_back: Cell::default(),
            slowest_pong: Cell::default(),
            reports: RefCell::default(),
        }
    }

    /// Refuse new connections from now on, or accept them again.
    pub fn set_level(&self, level: Level) {
        self.service.thread_changes(self.level.replace(level), level);
    }

    /// Return the numbers of accepted TCP connections and of reconnects' handshakes.
    pub fn came_here(&self) -> (u64, u64) {
        (self.accepted.get(), self.came_back.get())
    }

    /// Record an answered ping, and the time since its arrival.
    pub fn answered_ping(&self, id: u64, after: Duration) {
        self.service.metrics.pong_seconds.observe(id, after.as_secs_f64());
        self.slowest_pong.set(self.slowest_pong.get().max(after));
    }

    /// Return the longest such time since the last call.
    pub fn take_slowest_pong(&self) -> Duration {
        self.slowest_pong.take()
    }

    /// Count a connection's activity since `before`.
    pub fn count(&self, before: &Totals, now: &Totals) {
        let metrics = &self.service.metrics;
        for (counter, before, now) in [
            (&metrics.messages_in, before.messages_in, now.messages_in),
            (&metrics.messages_out, before.messages_out, now.messages_out),
            (&metrics.bytes_in, before.bytes_in, now.bytes_in),
            (&metrics.bytes_out, before.bytes_out, now.bytes_out),
        ] {
            if now != before {
                counter.inc_by(now - before);
            }
        }
    }

    pub(super) fn refused(&self, peer: SocketAddr, refusal: Refusal) {
        self.service.metrics.refused.with_label_values(&[refusal.name()]).inc();
        let status = refusal.status().map(|status| status.as_u16());
        self.log(Line { refused: Some(refusal.name()), status, ..Line::new(What::Refused, peer) });
    }

    pub(super) fn opened(&self, origin: &Origin) {
        let took = Duration::from_micros(origin.handshake_us.into());
        let metrics = &self.service.metrics;
        metrics.opened.inc();
        origin.region.open.inc();
        metrics.by_protocol.opened(origin.protocol.as_deref());
        metrics.handshake_seconds.observe(origin.id, took.as_secs_f64());
        self.service.journal.record(origin.id, Happened::Opened(took));
        if let Some(trace) = &self.service.config.trace {
            trace.opened(origin, self.ping_interval());
        }
        self.log(self.line_of(What::Open, origin));
    }

    /// Count and log the end of a connection.
    pub fn closed(&self, origin: &Origin, ended: &Ended) {
        let metrics = &self.service.metrics;
        self.service.journal.bury(origin, ended);
        self.service.reconnects.left(origin.client, Instant::now());
        origin.region.close.inc();
        if ended.cause.is_error() {
            origin.region.error.inc();
        }
        if let Some(trace) = &self.service.config.trace {
            trace.closed(origin, self.ping_interval(), ended);
        }
        metrics.closed.inc(ended.cause.name(), origin.id);
        metrics.by_protocol.closed(origin.protocol.as_deref(), ended.cause);
        if let Cause::Protocol(error) = ended.cause {
            metrics.protocol_errors.with_label_values(&[error.name()]).inc();
        }
        let closed = |what| Line {
            closed: Some(Closed::new(ended, origin.started.elapsed())),
            ..self.line_of(what, origin)
        };
        if ended.cause.is_error() {
            self.log(closed(What::Error));
        }
        self.log(closed(What::Close));
    }

    /// Return the silence after which a client is pinged.
    pub fn ping_interval(&self) -> Duration {
        self.service.config.heartbeat.ping_interval
    }

    /// Create a log line about a connection.
    fn line_of<'a>(&self, event: What, origin: &'a Origin) -> Line<'a> {
        let identity = origin.identity.as_deref();
        Line {
            connection_id: Some(origin.id),
            client: (origin.client != origin.peer.ip().into()).then_some(origin.client),
            user_id: identity.and_then(|identity| identity.user_id.as_deref()),
            region: identity.and_then(|identity| identity.region.as_deref()),
            certificate: identity.and_then(|identity| identity.certificate.as_deref()),
            protocol_version: Some(origin.protocol.as_deref().unwrap_or(negotiation::NONE)),
            handshake_duration_ms: Some(f64::from(origin.handshake_us) / 1e3),
            ping_interval_ms: Some(self.ping_interval().as_millis() as u64),
            ..Line::new(event, origin.peer)
        }
    }

    fn log(&self, line: Line<'_>) {
        if self.service.access_log.is_open() {
            self.service.access_log.write(&Line { time: timestamp(), ..line });
        }
    }
}
