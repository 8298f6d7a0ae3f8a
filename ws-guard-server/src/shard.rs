//! One thread of the server: its listener, its connections, and the wheel of their timers.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Request, body::Incoming};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use ws_guard_common::forwarded::ClientReader;

use super::{
    access_log::{Closed, Line, What, timestamp},
    admission::{Full, Handshaking, Ticket},
    asking::Ask,
    cause::Cause,
    charges::Turns,
    connection::Connection,
    handshake::{self, Done, Refusal, Upgrade},
    identity::Identity,
    io::Io,
    journal::Happened,
    metrics::Region,
    negotiation,
    places::Places,
    proxies::Caller,
    record::{Ended, Origin, Totals},
    service::Service,
    stall::Level,
    wheel::Wheel,
};
use crate::{seldom::Seldom, view::ConnectionView};

/// Pause after an accept that failed for want of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What connections get to say goodbye in once the time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is known of a client that was let in.
struct Admitted {
    ticket: Ticket,
    client: Caller,
    identity: Identity,
}

/// Where a request comes from.
struct Arrival {
    peer: SocketAddr,
    /// What its connection began with.
    beginning: ClientReader,
    /// Whose certificate the client showed.
    certificate: Option<Box<str>>,
}

/// What the connections of one thread share.
pub struct Shard {
    pub service: Arc<Service>,
    pub wheel: Wheel,
    /// For what takes more than a turn.
    pub places: Places,
    /// How long connections took lately.
    pub turns: Turns,
    /// How late this thread is.
    level: Cell<Level>,
    /// TCP connections that it accepted.
    accepted: Cell<u64>,
    /// Handshakes of clients that came back.
    came_back: Cell<u64>,
    /// The longest time from a ping to its pong since the canary last looked.
    slowest_pong: Cell<Duration>,
    /// What connections said that were asked.
    pub reports: RefCell<Vec<ConnectionView>>,
}

impl Shard {
    /// Accept and serve until `stop` says so; then close what is open, within the time to drain.
    /// Runs on a `LocalRuntime`.
    pub async fn run(
        service: Arc<Service>,
        listener: TcpListener,
        asked: mpsc::Receiver<Ask>,
        stop: watch::Receiver<bool>,
    ) {
        let shard = Rc::new(Shard::new(service));
        let tasks = TaskTracker::new();
        let turning = shard.clone();
        let turning = tokio::task::spawn_local(async move { turning.wheel.turn().await });
        let watching = tokio::task::spawn_local(shard.clone().watch_stalls());
        let answering = tokio::task::spawn_local(shard.clone().answer(asked));
        shard.accept(&listener, &tasks, stop).await;
        drop(listener);
        shard.drain(&tasks).await;
        turning.abort();
        watching.abort();
        answering.abort();
    }

    fn new(service: Arc<Service>) -> Shard {
        Shard {
            service,
            wheel: Wheel::default(),
            places: Places::default(),
            turns: Turns::new(Instant::now()),
            level: Cell::default(),
            accepted: Cell::default(),
            came_back: Cell::default(),
            slowest_pong: Cell::default(),
            reports: RefCell::default(),
        }
    }

    /// Refuse new connections from now on, or let them in again.
    pub fn set_level(&self, level: Level) {
        self.service.thread_changes(self.level.replace(level), level);
    }

    /// TCP connections that this thread has accepted so far, and handshakes of clients that came back.
    pub fn came_here(&self) -> (u64, u64) {
        (self.accepted.get(), self.came_back.get())
    }

    /// A ping was answered so long after it came.
    pub fn answered_ping(&self, after: Duration) {
        self.service.metrics.pong_seconds.observe(after.as_secs_f64());
        self.slowest_pong.set(self.slowest_pong.get().max(after));
    }

    /// The longest such time since this was last asked.
    pub fn take_slowest_pong(&self) -> Duration {
        self.slowest_pong.take()
    }

    async fn accept(
        self: &Rc<Shard>,
        listener: &TcpListener,
        tasks: &TaskTracker,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut failures = Seldom::default();
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
                    if let Some(before) = failures.say(Instant::now()) {
                        tracing::warn!(
                            "cannot accept connections for now, {before} more times before: {error}"
                        );
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Rc<Shard>, stream: TcpStream, peer: SocketAddr, tasks: &TaskTracker) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let service = &self.service;
        self.accepted.set(self.accepted.get() + 1);
        let Some(handshaking) = service.admission.handshake(peer.ip(), &service.config) else {
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
        let accepted = self.accept_upgrade(stream, peer).await;
        drop(handshaking);
        let (done, admitted) = match accepted {
            Ok(done) => done.split(),
            Err(refusal) => return self.refused(peer, refusal),
        };
        let Admitted { ticket, client, identity } = admitted;
        let region = identity.region.as_deref();
        let region = self.service.regions.intern(region, &self.service.metrics);
        let known = identity != Identity::default();
        let identity = known.then(|| Box::new(identity));
        let id = self.service.next_id();
        let protocol = done.upgrade.protocol.as_ref().map(|choice| choice.protocol.clone());
        let handshake_us = started.elapsed().as_micros().try_into().unwrap_or(u32::MAX);
        let origin = Origin { id, peer, client, identity, region, protocol, started, handshake_us };
        self.opened(&origin);
        tasks.spawn_local(Connection::new(self, origin, ticket, done));
    }

    /// What is below HTTP, and the HTTP handshake, in the time that there is for both. A client that
    /// is refused is told so, and its stream is ended in order.
    async fn accept_upgrade(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<Done<Io, Admitted>, Refusal> {
        let config = &self.service.config;
        let deadline = tokio::time::Instant::now() + config.handshake_timeout;
        let begun = timeout_at(deadline, self.begin(stream, peer)).await;
        let (mut io, beginning) = begun.unwrap_or(Err(Refusal::Timeout))?;
        let certificate = io.certificate_name();
        let from = Arrival { peer, beginning, certificate };
        let let_in = |request: &_, upgrade: &mut _| self.let_in(request, upgrade, &from);
        let accepted = timeout_at(deadline, handshake::accept(&mut io, config, let_in)).await;
        match accepted.unwrap_or(Err(Refusal::Timeout)) {
            Ok(Done { leftover, upgrade, admitted, .. }) => {
                Ok(Done { io, leftover, upgrade, admitted })
            }
            Err(refusal) => {
                handshake::say_goodbye(io).await;
                Err(refusal)
            }
        }
    }

    /// The PROXY protocol's header, if there has to be one, and TLS likewise.
    async fn begin(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<(Io, ClientReader), Refusal> {
        let config = &self.service.config;
        let beginning = config.proxies.accept(&mut stream, peer).await;
        let beginning = beginning.ok_or(Refusal::ProxyHeader)?;
        let io = match &config.tls {
            None => Io::Plain(stream),
            Some(tls) => {
                let accepted = tls.acceptor().accept(stream).await;
                Io::Tls(Box::new(accepted.map_err(|_| Refusal::Tls)?))
            }
        };
        Ok((io, beginning))
    }

    fn let_in(
        &self,
        request: &Request<Incoming>,
        upgrade: &mut Upgrade,
        from: &Arrival,
    ) -> Result<Admitted, Refusal> {
        let service = &self.service;
        let proxies = &service.config.proxies;
        let client = proxies.client(request.headers(), from.beginning, from.peer);
        if service.reconnects.comes_back(client, Instant::now()) {
            self.came_back.set(self.came_back.get() + 1);
            service.metrics.reconnects.inc();
        }
        if service.is_stopping() {
            return Err(Refusal::Shutdown);
        }
        if service.over_budget() {
            return Err(Refusal::MemoryFull);
        }
        if self.level.get() >= Level::Refuse {
            return Err(Refusal::Stalled);
        }
        let trusted = proxies.trust(from.peer.ip());
        let identity =
            service.config.access.check(request, trusted, from.certificate.as_deref())?;
        let user = identity.user_id.as_deref();
        let ticket = service.admission.admit(client, user, &service.config);
        let ticket = ticket.map_err(|full| match full {
            Full::Server => Refusal::ServerFull,
            Full::Source => Refusal::SourceFull,
            Full::User => Refusal::UserFull,
        })?;
        let wishes = negotiation::Client {
            user,
            tls: service.config.tls.is_some(),
            certified: from.certificate.is_some(),
        };
        upgrade.negotiate(request.headers(), &service.config.negotiation.table(), &wishes);
        Ok(Admitted { ticket, client, identity })
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
    pub fn show(&self, region: &Region, from: Option<&str>, to: Option<&str>) {
        let gauges = &self.service.metrics.connections;
        if let Some(state) = from {
            gauges.with_label_values(&[state, region.name()]).dec();
        }
        if let Some(state) = to {
            gauges.with_label_values(&[state, region.name()]).inc();
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
        self.log(Line { refused: Some(refusal.name()), status, ..Line::new(What::Refused, peer) });
    }

    fn opened(&self, origin: &Origin) {
        let took = Duration::from_micros(origin.handshake_us.into());
        let metrics = &self.service.metrics;
        metrics.opened.inc();
        origin.region.open.inc();
        metrics.by_protocol.opened(origin);
        metrics.handshake_seconds.observe(took.as_secs_f64());
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
        metrics.closed.with_label_values(&[ended.cause.name()]).inc();
        metrics.by_protocol.closed(origin, ended.cause);
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

    /// Silence of a client before it is pinged.
    pub fn ping_interval(&self) -> Duration {
        self.service.config.heartbeat.ping_interval
    }

    /// A line about a connection.
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

/// An error of accept(2) that says something of the connection, not of this process.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
