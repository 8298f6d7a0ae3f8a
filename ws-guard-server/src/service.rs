//! The whole server: shards, what they share, and its end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use prometheus::Registry;
use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, oneshot, watch},
};

use super::{
    access_log::AccessLog,
    admission::Admission,
    asking::Ask,
    config::{Config, HandlerKind},
    held::Held,
    journal::Journal,
    metrics::{Metrics, Regions},
    reconnects::Reconnects,
    record::Origin,
    shard::Shard,
    topics::{
        Topics,
        bus::{Bus, LocalBus},
        exchange::Exchange,
    },
};
use crate::{listen, view::ConnectionView};

/// Questions that may wait for a thread.
const ASKS: usize = 16;

/// What all shards share.
pub struct Service {
    pub config: Config,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub admission: Arc<Admission>,
    pub regions: Regions,
    pub journal: Arc<Journal>,
    pub reconnects: Reconnects,
    /// Under [`HandlerKind::Topic`].
    pub topics: Option<Arc<Topics>>,
    asks: Vec<mpsc::Sender<Ask>>,
    next_id: AtomicU64,
    leaving: AtomicBool,
    stopping: AtomicBool,
    held: Held,
    /// Threads that are late and refuse newcomers.
    pub(super) late: AtomicUsize,
}

impl Service {
    /// A number for a connection, from 1.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection holds `now` bytes in buffers, and held `before`.
    pub fn hold(&self, before: usize, now: usize) {
        self.held.change(before, now);
        if let Some(topics) = &self.topics {
            topics.set_short(self.over_budget());
        }
    }

    /// Bytes that all connections together hold in buffers.
    pub fn held(&self) -> usize {
        self.held.bytes()
    }

    /// A connection sent pings. Those inside TLS are noted for the guard, which cannot see them;
    /// those that came through a proxy are not: the guard would take it out on the proxy, also where
    /// the proxy does not say for whom it speaks.
    pub fn see_pings(&self, origin: &Origin, pings: u64) {
        let Some(seen) = self.config.seen.as_ref().filter(|_| pings > 0) else { return };
        let peer = origin.peer.ip();
        let proxied = origin.client != peer.into() || self.config.proxies.trust(peer);
        if self.config.tls.is_some() && !proxied {
            let source = self.config.pings.source_of(peer);
            seen.note(source, u32::try_from(pings).unwrap_or(u32::MAX));
        }
    }

    /// All connections together hold more than they should.
    pub fn over_budget(&self) -> bool {
        self.held() > self.config.memory_budget
    }

    /// Whether a connection that holds so many bytes of an unfinished message has to go: the budget is
    /// used up, and it has more than its even share of it. While a quarter more is not used up as well,
    /// it has time until its timer comes round.
    pub fn is_too_much(&self, bytes: usize, in_time: bool) -> bool {
        let budget = self.config.memory_budget;
        let most = if in_time { budget.saturating_add(budget / 4) } else { budget };
        self.held() > most && bytes > budget / self.admission.open().max(1)
    }

    /// Bytes that may be on their way to a connection before nothing more is read from it.
    pub fn output_limit(&self) -> usize {
        self.config.output.bytes(self.over_budget())
    }

    /// How live connections stand, in the order of their numbers; of all, or of the one with this
    /// number. Each thread is asked, and looks at a few connections at a time.
    pub async fn live(&self, id: Option<u64>) -> Vec<ConnectionView> {
        let mut answers = Vec::new();
        for shard in &self.asks {
            let (reply, answer) = oneshot::channel();
            if shard.send(Ask { id, reply }).await.is_ok() {
                answers.push(answer);
            }
        }
        let mut views = Vec::new();
        for answer in answers {
            // A thread that ended has no connections.
            views.extend(answer.await.unwrap_or_default());
        }
        views.sort_by_key(|view| view.id);
        views
    }

    /// Be not ready, and go on as before for [`Config::shutdown_delay`]: a listener that closes at
    /// once refuses those whom a load balancer still sends.
    pub async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let delay = self.config.shutdown_delay;
        if !delay.is_zero() {
            tracing::info!("not ready, and ending in {delay:?}");
            tokio::time::sleep(delay).await;
        }
    }

    /// The server is about to end, and still lets connections in.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// No more connections are let in, and those that are there are closed.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("cannot start a thread for connections: {0}")]
    Thread(io::Error),
    #[error("cannot register the server's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A server that runs, on threads of its own.
pub struct Server {
    service: Arc<Service>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    shards: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listen, and serve until [`Server::stop`]. Its metrics go to `registry`. Topics, if they are
    /// wanted, end at this process.
    pub fn start(
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        Server::start_on(LocalBus::connect, config, access_log, registry)
    }

    /// The same with topics whose publications go over the bus that `connect` makes.
    pub fn start_on(
        connect: impl FnOnce(Arc<Exchange>) -> Arc<dyn Bus>,
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let listeners = listen::for_shards(config.listen, config.shards)
            .map_err(|error| StartError::Listen(config.listen, error))?;
        Server::start_with(listeners, connect, config, access_log, registry)
    }

    /// The same with sockets that listen already, one a thread.
    pub fn start_with(
        listeners: Vec<TcpListener>,
        connect: impl FnOnce(Arc<Exchange>) -> Arc<dyn Bus>,
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let metrics = Metrics::new(registry)?;
        access_log.register(registry)?;
        let held = Held::new(metrics.buffered.clone());
        let topics = match config.handler {
            HandlerKind::Echo => None,
            HandlerKind::Topic(limits) => {
                Some(Arc::new(Topics::new(limits, registry, held.clone(), connect)?))
            }
        };
        metrics.ping_interval.set(config.heartbeat.ping_interval.as_secs_f64());
        let address = match listeners.first().map(TcpListener::local_addr) {
            Some(Ok(address)) => address,
            _ => config.listen,
        };
        let journal = Arc::new(Journal::new(config.heartbeat.ping_interval));
        let (asks, asked): (Vec<_>, Vec<_>) = listeners.iter().map(|_| mpsc::channel(ASKS)).unzip();
        let service = Arc::new(Service {
            config,
            metrics,
            access_log,
            admission: Arc::new(Admission::default()),
            regions: Regions::default(),
            journal,
            reconnects: Reconnects::default(),
            topics,
            asks,
            next_id: AtomicU64::new(1),
            leaving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            held,
            late: AtomicUsize::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut server = Server { service, address, stop, shards: Vec::new() };
        for (listener, asked) in listeners.into_iter().zip(asked) {
            // Those that run already end with the server when this fails.
            let shard = spawn(server.service.clone(), listener, asked, stopped.clone());
            server.shards.push(shard.map_err(StartError::Thread)?);
        }
        Ok(server)
    }

    /// Where it listens: the port is known even if it was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Stop accepting, close all connections with 1001, and return when they are gone, at the latest
    /// a little after [`Config::drain_timeout`]. Blocks.
    pub fn stop(mut self) {
        self.tell();
        for shard in self.shards.drain(..) {
            if shard.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }

    fn tell(&self) {
        self.service.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tell();
    }
}

/// A thread with a runtime of its own: a connection never changes threads.
fn spawn(
    service: Arc<Service>,
    listener: TcpListener,
    asked: mpsc::Receiver<Ask>,
    stop: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("ws-shard".into()).spawn(move || {
        let (runtime, listener) = match runtime(listener) {
            Ok(begun) => begun,
            Err(error) => return drop(ready.send(Err(error))),
        };
        // Whoever starts the server waits for this.
        let _ = ready.send(Ok(()));
        runtime.block_on(Shard::run(service, listener, asked, stop));
    })?;
    // No runtime's channel: this may itself be on one, and it does not take long.
    let lost = |_| Err(io::Error::other("it ended before it began"));
    started.recv().unwrap_or_else(lost)?;
    Ok(thread)
}

/// The runtime of this thread, and the listener on it.
fn runtime(listener: TcpListener) -> io::Result<(LocalRuntime, tokio::net::TcpListener)> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    drop(entered);
    Ok((runtime, listener))
}
