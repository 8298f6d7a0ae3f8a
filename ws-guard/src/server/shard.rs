//! One thread of the server: its listener, its connections, and the wheel of their timers.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::{
    access_log::{Closed, Line, What, timestamp},
    admission::{Full, Handshaking, Ticket},
    cause::Cause,
    connection::{Connection, Ended, Origin, Totals},
    handshake::{self, Refusal},
    service::Service,
    wheel::Wheel,
};

/// Pause after an accept that failed for want of something, such as descriptors.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// What connections get to say goodbye in once the time to drain is over.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);
/// Until connections can say where they come from.
const REGION: &str = "unknown";

/// What the connections of one thread share.
pub struct Shard {
    pub service: Arc<Service>,
    pub wheel: Wheel,
}

impl Shard {
    /// Accept and serve until `stop` says so; then close what is open, within the time to drain.
    /// Runs inside a `LocalSet`.
    pub async fn run(service: Arc<Service>, listener: TcpListener, stop: watch::Receiver<bool>) {
        let shard = Rc::new(Shard { service, wheel: Wheel::default() });
        let tasks = TaskTracker::new();
        let turning = shard.clone();
        let turning = tokio::task::spawn_local(async move { turning.wheel.turn().await });
        shard.accept(&listener, &tasks, stop).await;
        drop(listener);
        shard.drain(&tasks).await;
        turning.abort();
    }

    async fn accept(
        self: &Rc<Shard>,
        listener: &TcpListener,
        tasks: &TaskTracker,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // Nobody left to say so means the same.
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, tasks),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!("cannot accept connections for now: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Rc<Shard>, stream: TcpStream, peer: SocketAddr, tasks: &TaskTracker) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let service = &self.service;
        let Some(handshaking) = service.admission.handshake(&service.config) else {
            service.metrics.refused.with_label_values(&["handshakes_full"]).inc();
            return;
        };
        // Without it the answer to a small message would wait for the acknowledgement of another.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        tasks.spawn_local(self.clone().shake(stream, peer, handshaking, tasks.clone()));
    }

    /// From a TCP connection to a task for the WebSocket connection. The handshake is a task of its
    /// own: it needs much more memory, and not for long.
    async fn shake(
        self: Rc<Shard>,
        stream: TcpStream,
        peer: SocketAddr,
        handshaking: Handshaking,
        tasks: TaskTracker,
    ) {
        let started = Instant::now();
        let accepted = handshake::accept(stream, &self.service.config, || self.let_in(peer));
        let accepted = timeout(self.service.config.handshake_timeout, accepted).await;
        drop(handshaking);
        match accepted.unwrap_or(Err(Refusal::Timeout)) {
            Ok(done) => {
                let id = self.service.next_id();
                let origin = Origin { id, peer, started };
                self.opened(&origin);
                let connection = Connection::new(self, origin, done);
                tasks.spawn_local(connection);
            }
            Err(refusal) => self.refused(peer, refusal),
        }
    }

    fn let_in(&self, peer: SocketAddr) -> Result<Ticket, Refusal> {
        let service = &self.service;
        if service.is_stopping() {
            return Err(Refusal::Shutdown);
        }
        service.admission.admit(peer.ip(), &service.config).map_err(|full| match full {
            Full::Server => Refusal::ServerFull,
            Full::Source => Refusal::SourceFull,
        })
    }

    async fn drain(&self, tasks: &TaskTracker) {
        tasks.close();
        self.wheel.order_all(Cause::Shutdown);
        if timeout(self.service.config.drain_timeout, tasks.wait()).await.is_err() {
            self.wheel.abandon_all();
            // What is left now is in the middle of a handshake, and goes with its thread.
            let _ = timeout(LAST_WORDS, tasks.wait()).await;
        }
    }

    /// Move a connection from one state's gauge to another's.
    pub fn show(&self, from: Option<&str>, to: Option<&str>) {
        let gauges = &self.service.metrics.connections;
        if let Some(state) = from {
            gauges.with_label_values(&[state, REGION]).dec();
        }
        if let Some(state) = to {
            gauges.with_label_values(&[state, REGION]).inc();
        }
    }

    /// Count what a connection has done since `before`.
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

    fn refused(&self, peer: SocketAddr, refusal: Refusal) {
        self.service.metrics.refused.with_label_values(&[refusal.name()]).inc();
        let status = refusal.status().map(|status| status.as_u16());
        self.log(Line { refused: Some(refusal.name()), status, ..line(What::Refused, peer) });
    }

    fn opened(&self, origin: &Origin) {
        let took = origin.started.elapsed();
        let metrics = &self.service.metrics;
        metrics.opened.inc();
        metrics.handshake_seconds.observe(took.as_secs_f64());
        let interval = self.service.config.heartbeat.ping_interval;
        self.log(Line {
            connection_id: Some(origin.id),
            handshake_duration_ms: Some(took.as_secs_f64() * 1e3),
            ping_interval_ms: Some(interval.as_millis() as u64),
            ..line(What::Open, origin.peer)
        });
    }

    /// Count and log the end of a connection.
    pub fn closed(&self, origin: &Origin, ended: &Ended) {
        let metrics = &self.service.metrics;
        metrics.closed.with_label_values(&[ended.cause.name()]).inc();
        if let Cause::Protocol(error) = ended.cause {
            metrics.protocol_errors.with_label_values(&[error.name()]).inc();
        }
        self.log(Line {
            connection_id: Some(origin.id),
            closed: Some(Closed::new(ended, origin.started.elapsed())),
            ..line(What::Close, origin.peer)
        });
    }

    fn log(&self, line: Line<'_>) {
        if self.service.access_log.is_open() {
            self.service.access_log.write(&Line { time: timestamp(), ..line });
        }
    }
}

/// A line with nothing in it yet; its time is set when it is written.
fn line<'a>(event: What, peer: SocketAddr) -> Line<'a> {
    Line {
        time: String::new(),
        event,
        connection_id: None,
        peer,
        handshake_duration_ms: None,
        ping_interval_ms: None,
        closed: None,
        refused: None,
        status: None,
    }
}

/// An error of accept(2) that says something of the connection, not of this process.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
