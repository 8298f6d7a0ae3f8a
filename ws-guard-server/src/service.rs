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
    held::Held,
    journal::Journal,
    metrics::{Exemplar, Metrics, Regions},
    reconnects::Reconnects,
    record::Origin,
    topics::Topics,
};
use crate::view::ConnectionView;

/// A question to a thread.
pub struct Ask {
    /// One connection, or all.
    pub id: Option<u64>,
    pub reply: oneshot::Sender<Vec<ConnectionView>>,
}

/// What all shards share.
pub struct Service {
    pub config: Config,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub admission: Arc<Admission>,
    pub regions: Regions,
    pub journal: Arc<Journal>,
    pub reconnects: Reconnects,
    /// Under [`HandlerKind::Topic`](crate::HandlerKind::Topic).
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
    /// `held` counts the bytes in buffers, of `topics` too; `asks` leads to each thread.
    pub(super) fn new(
        config: Config,
        metrics: Metrics,
        access_log: AccessLog,
        topics: Option<Arc<Topics>>,
        held: Held,
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

    /// Connections behind samples of the metrics, the latest of each, with their traces.
    pub fn exemplars(&self) -> Vec<Exemplar> {
        let mut all = self.metrics.exemplars();
        if let Some(trace) = &self.config.trace {
            for one in &mut all {
                one.trace_id = Some(format!("{:032x}", trace.id(one.connection_id)));
            }
        }
        all
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

    /// Whether a connection with this number of bytes of an unfinished message is closed: the budget is
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

    /// From now on [`Service::is_stopping`].
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}
