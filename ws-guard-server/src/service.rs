//! State shared by the threads of a server, and reports on all its connections.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    access_log::AccessLog,
    admission::Admission,
    config::Config,
    journal::Journal,
    memory_budget::MemoryBudget,
    metrics::{Exemplar, Metrics, Regions},
    reconnects::Reconnects,
    record::Origin,
    topics::Topics,
};
use crate::view::ConnectionView;

/// Query to a thread.
pub struct Ask {
    /// Number of one connection, or `None` for all.
    pub id: Option<u64>,
    pub reply: oneshot::Sender<Vec<ConnectionView>>,
}

/// State shared by all shards.
pub struct Service {
    pub config: Config,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub admission: Arc<Admission>,
    pub regions: Regions,
    pub journal: Arc<Journal>,
    pub reconnects: Reconnects,
    /// Topics, with [`HandlerKind::Topic`](crate::HandlerKind::Topic).
    pub topics: Option<Arc<Topics>>,
    asks: Vec<mpsc::Sender<Ask>>,
    next_id: AtomicU64,
    leaving: AtomicBool,
    stopping: AtomicBool,
    held: MemoryBudget,
    /// Number of threads that are late and refuse newcomers.
    pub(super) late: AtomicUsize,
}

impl Service {
    /// Create it; `held` counts bytes in buffers and topics, `asks` leads to threads.
    pub(super) fn new(
        config: Config,
        metrics: Metrics,
        access_log: AccessLog,
        topics: Option<Arc<Topics>>,
        held: MemoryBudget,
        asks: Vec<mpsc::Sender<Ask>>,
    ) -> Service {
        Service {
            admission: Arc::new(Admission::default()),
            regions: Regions::new(&metrics),
            journal: Arc::new(Journal::new(config.heartbeat.ping_interval)),
            reconnects: Reconnects::default(),
            config,
            metrics,
            access_log,
            topics,
            asks,
            next_id: AtomicU64::new(1),
            leaving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            held,
            late: AtomicUsize::new(0),
        }
    }

    /// Return a new connection's number, from 1.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Record that a connection holds `now` bytes in buffers, after `before`.
    pub fn hold(&self, before: usize, now: usize) {
        self.held.change(before, now);
        if let Some(topics) = &self.topics {
            topics.set_short(self.over_budget());
        }
    }

    /// Return the number of bytes that all connections together hold in buffers.
    pub fn held(&self) -> usize {
        self.held.bytes()
    }

    /// Return the latest connection behind each sample of the metrics, with its trace.
    pub fn exemplars(&self) -> Vec<Exemplar> {
        let mut all = self.metrics.exemplars();
        if let Some(trace) = &self.config.trace {
            for one in &mut all {
                one.trace_id = Some(format!("{:032x}", trace.id(one.connection_id)));
            }
        }
        all
    }

    /// Record pings of a connection; those inside TLS are reported to the guard.
    /// The guard cannot see them. Those through a proxy are not reported: the guard would limit the
    /// proxy, also where the proxy does not name its client.
    pub fn see_pings(&self, origin: &Origin, pings: u64) {
        let Some(seen) = self.config.seen.as_ref().filter(|_| pings > 0) else { return };
        let peer = origin.peer.ip();
        let proxied = origin.client != peer.into() || self.config.proxies.trust(peer);
        if self.config.tls.is_some() && !proxied {
            let source = self.config.pings.source_of(peer);
            seen.note(source, u32::try_from(pings).unwrap_or(u32::MAX));
        }
    }

    /// Check whether all connections together exceed the memory budget.
    pub fn over_budget(&self) -> bool {
        self.held() > self.config.memory_budget
    }

    /// Check whether a connection is to be closed because of its incomplete message.
    /// It is if the budget is used up, and the bytes are more than its even share of it. While a
    /// further quarter is not used up as well, it has time until its next timer.
    pub fn is_too_much(&self, bytes: usize, in_time: bool) -> bool {
        let budget = self.config.memory_budget;
        let most = if in_time { budget.saturating_add(budget / 4) } else { budget };
        self.held() > most && bytes > budget / self.admission.open().max(1)
    }

    /// Return the limit of a connection's pending output in bytes.
    /// Above it nothing more is read from the connection.
    pub fn output_limit(&self) -> usize {
        self.config.output.bytes(self.over_budget())
    }

    /// Return the state of all live connections, or of one, ordered by number.
    /// Each thread is queried, and handles a few connections at a time.
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
            // A thread that has ended has no connections.
            views.extend(answer.await.unwrap_or_default());
        }
        views.sort_by_key(|view| view.id);
        views
    }

    /// Become unready, and continue for [`Config::shutdown_delay`].
    /// A listener that closes at once refuses clients that a load balancer still sends.
    pub async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let delay = self.config.shutdown_delay;
        if !delay.is_zero() {
            tracing::info!("not ready, and ending in {delay:?}");
            tokio::time::sleep(delay).await;
        }
    }

    /// Check whether the server is about to end, but still accepts connections.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Check whether connections are refused, and open ones are being closed.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Make [`Service::is_stopping`] true.
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}
