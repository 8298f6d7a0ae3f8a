//! Acceptance of a thread's new connections, and their handshakes, until it ends.

use std::{
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
    admission::{Full, Handshaking, Ticket},
    cause::Cause,
    connection::Connection,
    handshake::{self, Done, Upgrade},
    identity::{Identity, resume_token},
    io::Io,
    negotiation,
    proxies::Caller,
    record::Origin,
    refusal::Refusal,
    service::{Ask, Service},
    shard::Shard,
    stall::Level,
    topics::subscriber::Beginning,
};
use crate::{metrics::HANDSHAKES_FULL, seldom::Seldom};

/// Pause after an accept that failed for lack of a resource, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval of removing outdated data from topics, by one thread each time.
const SWEEP: Duration = Duration::from_secs(1);
/// Interval of closing some connections during shutdown.
const STEP: Duration = Duration::from_millis(10);
/// Time for last writes of connections after the time to drain.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Result of admitting a client.
struct Admitted {
    ticket: Ticket,
    client: Caller,
    identity: Identity,
    resume: Option<Box<str>>,
}

/// Network origin of a request.
struct Arrival {
    peer: SocketAddr,
    /// Beginning of its connection.
    beginning: ClientReader,
    /// Name in the client's certificate.
    certificate: Option<Box<str>>,
}

impl Shard {
    /// Accept and serve until `stop` is set, then close within the time to drain.
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
        let sweeping = tokio::task::spawn_local(shard.clone().sweep_topics());
        let answering = tokio::task::spawn_local(shard.clone().answer(asked));
        shard.accept(&listener, &tasks, stop).await;
        drop(listener);
        shard.drain(&tasks).await;
        turning.abort();
        watching.abort();
        sweeping.abort();
        answering.abort();
    }

    /// Remove outdated data from topics periodically, for ever.
    async fn sweep_topics(self: Rc<Shard>) {
        let Some(topics) = &self.service.topics else { return };
        loop {
            sleep(SWEEP).await;
            topics.sweep();
        }
    }

    async fn accept(
        self: &Rc<Shard>,
        listener: &TcpListener,
        tasks: &TaskTracker,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut failures = Seldom::default();
        let (admission, config) = (&self.service.admission, &self.service.config);
        let mut room = true;
        loop {
            // If no pending handshake progresses, newcomers do not wait a second time.
            let patience = if room { config.handshake_wait } else { Duration::ZERO };
            room = admission.room(patience, config).await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // A closed channel means the same.
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
            service.metrics.refused.with_label_values(&[HANDSHAKES_FULL]).inc();
            return;
        };
        // Otherwise the response to a small message would wait for the acknowledgement of another.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        tasks.spawn_local(self.clone().shake(stream, peer, handshaking, tasks.clone()));
    }

    /// Turn a TCP connection into a task for the WebSocket connection.
    /// The handshake is a task of its own: it needs much more memory, and not for long.
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
        let Admitted { ticket, client, mut identity, resume } = admitted;
        let grants = std::mem::take(&mut identity.grants);
        let beginning = Beginning { user: identity.user_id.clone(), grants, resume };
        let region = identity.region.as_deref();
        let region = self.service.regions.intern(region, &self.service.metrics);
        let known = identity != Identity::default();
        let identity = known.then(|| Box::new(identity));
        let id = self.service.next_id();
        let protocol = done.upgrade.protocol.as_ref().map(|choice| choice.protocol.clone());
        let handshake_us = started.elapsed().as_micros().try_into().unwrap_or(u32::MAX);
        let origin = Origin { id, peer, client, identity, region, protocol, started, handshake_us };
        self.opened(&origin);
        tasks.spawn_local(Connection::new(self, origin, ticket, done, beginning));
    }

    /// Run the handshakes below HTTP, and that of HTTP, within the handshake time-out.
    /// A refused client gets a response, and its stream is ended in order.
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

    /// Read the PROXY protocol's header and start TLS, where required.
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
        if !service.admission.rate.take(service.config.admission_rate) {
            return Err(Refusal::TooFast);
        }
        let trusted = proxies.trust(from.peer.ip());
        let identity =
            service.config.access.check(request, trusted, from.certificate.as_deref())?;
        let user = identity.user_id.as_deref();
        let share = service.config.user_cluster;
        if share.zip(user).is_some_and(|(share, user)| !share.has(user)) {
            return Err(Refusal::WrongCluster);
        }
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
        let resume = service.topics.as_ref().and_then(|_| {
            upgrade.resume(request.headers());
            resume_token(request)
        });
        Ok(Admitted { ticket, client, identity, resume })
    }

    /// Close connections evenly over the configured time.
    async fn close_by_and_by(&self) {
        let spread = self.service.config.shutdown_spread;
        let (start, all) = (tokio::time::Instant::now(), self.wheel.len());
        let mut closed = 0;
        while start.elapsed() < spread && closed < all {
            let share = start.elapsed().as_secs_f64() / spread.as_secs_f64();
            let due = (all as f64 * share) as usize;
            self.wheel.order_some(Cause::Shutdown, due - closed);
            closed = due.max(closed);
            sleep(STEP).await;
        }
    }

    async fn drain(&self, tasks: &TaskTracker) {
        tasks.close();
        self.close_by_and_by().await;
        self.closing.set(true);
        self.wheel.order_all(Cause::Shutdown);
        if timeout(self.service.config.drain_timeout, tasks.wait()).await.is_err() {
            self.wheel.abandon_all();
            // Connections still in a handshake end with their thread.
            let _ = timeout(LAST_WORDS, tasks.wait()).await;
        }
    }
}

/// Check whether an error of accept(2) is about the connection, not this process.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
