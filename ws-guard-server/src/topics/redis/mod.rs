//! A bus over Redis Streams, for servers that share topics.
//!
//! Each topic is a stream, and an entry's id is its position: epoch and offset. Publishing is one
//! script there. Every server has every entry of the topics that its clients have [pushed](pushes), so that
//! the [`Exchange`] has the same log as Redis; of a queue topic, a consumer group hands each entry to one
//! server, and [`queue`] to one of its clients. All of it is one thread, with a [`Session`] as long as
//! its connections last.

mod keys;
mod link;
mod metrics;
mod place;
mod pushes;
mod queue;
mod session;
mod slots;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::Registry;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::mpsc,
};

pub use self::metrics::BusMetrics;
use self::place::Place;
use self::session::{Session, Work};
use super::{
    bus::{Bus, BusError, Handed, Promise, Publication, Stored},
    exchange::Exchange,
};

/// How to reach Redis, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    place: Place,
    /// Servers of one cluster share topics.
    pub cluster: String,
    /// This server's name among them, which no other has.
    pub server: String,
    /// Replicas that have a publication before it is acknowledged.
    pub wait_replicas: usize,
}

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "{0}: write the bus as redis://HOST:PORT, redis+sentinel://HOST:PORT,…/NAME or \
         redis+cluster://HOST:PORT,…; with TLS, rediss"
    )]
    Url(String),
    #[error("{0:?} is no name of a cluster or a server: use letters, digits, - . and _")]
    Name(String),
}

impl Settings {
    /// Check them; nothing is connected yet.
    ///
    /// # Errors
    /// Where the URL or a name is none.
    pub fn new(
        url: &str,
        cluster: &str,
        server: &str,
        wait_replicas: usize,
    ) -> Result<Settings, SettingsError> {
        let place = Place::read(url).map_err(SettingsError::Url)?;
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        for name in [cluster, server] {
            if name.is_empty() || name.len() > 128 || !name.chars().all(is_good) {
                return Err(SettingsError::Name(name.into()));
            }
        }
        let (cluster, server) = (cluster.into(), server.into());
        Ok(Settings { place, cluster, server, wait_replicas })
    }
}

/// Bytes of publications that may be on their way to Redis.
const UNDER_WAY: usize = 32 << 20;
/// From a connection that was lost to the next try, at first and at most.
const BETWEEN: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// A connection that lasted as long is not a reason to wait longer for the next.
const LONG: Duration = Duration::from_secs(5);

/// What the bus's thread is asked for.
enum Order {
    Publish(Publication, Promise<Stored>, UnderWay),
    Acknowledge(Handed, Promise<bool>),
    Joined(Arc<str>),
    Left(Arc<str>),
}

/// Bytes on their way to Redis, until it is dropped.
struct UnderWay {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bus as connections see it.
pub struct RedisBus {
    orders: mpsc::UnboundedSender<Order>,
    connected: Arc<AtomicBool>,
    under_way: Arc<AtomicUsize>,
}

impl RedisBus {
    /// Carry the publications of `exchange`. Redis need not be there yet.
    ///
    /// # Errors
    /// Where no thread can be had, or the registry has such metrics already.
    pub fn connect(
        exchange: Arc<Exchange>,
        settings: Settings,
        registry: &Registry,
    ) -> Result<Arc<dyn Bus>, Box<dyn std::error::Error + Send + Sync>> {
        let metrics = BusMetrics::new(registry)?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let connected = Arc::new(AtomicBool::new(false));
        let work = Work { exchange, settings, metrics, connected: connected.clone() };
        std::thread::Builder::new().name("ws-bus".into()).spawn(move || {
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(run(work, ordered)),
                Err(error) => tracing::error!("the bus cannot run: {error}"),
            }
        })?;
        Ok(Arc::new(RedisBus { orders, connected, under_way: Arc::default() }))
    }

    fn order(&self, order: Order) {
        // Where the thread has ended, promises are dropped with it; it ends with the server.
        let _ = self.orders.send(order);
    }
}

fn away() -> BusError {
    BusError::Unavailable("Redis does not answer".into())
}

impl Bus for RedisBus {
    fn publish(&self, publication: Publication, promise: Promise<Stored>) {
        if !self.connected.load(Ordering::Relaxed) {
            return promise(Err(away()));
        }
        let bytes = publication.data.len();
        let under_way = UnderWay { all: self.under_way.clone(), bytes };
        if self.under_way.fetch_add(bytes, Ordering::Relaxed) + bytes > UNDER_WAY {
            drop(under_way);
            return promise(Err(BusError::Full));
        }
        self.order(Order::Publish(publication, promise, under_way));
    }

    fn joined(&self, topic: &Arc<str>) {
        self.order(Order::Joined(topic.clone()));
    }

    fn left(&self, topic: &Arc<str>) {
        self.order(Order::Left(topic.clone()));
    }

    fn acknowledge(&self, entry: Handed, promise: Promise<bool>) {
        if !self.connected.load(Ordering::Relaxed) {
            return promise(Err(away()));
        }
        self.order(Order::Acknowledge(entry, promise));
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// Be connected, again and again, until the server has no more use for it.
async fn run(work: Work, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut session = Session::new(work);
    let [mut pause, longest] = BETWEEN;
    loop {
        let ended = session.serve(&mut orders).await;
        session.disconnected();
        let Err(error) = ended else { return };
        match session.take_served() {
            Some(time) => {
                if time > LONG {
                    pause = BETWEEN[0];
                }
                tracing::warn!("the bus is lost: {error}");
            }
            None => tracing::debug!("the bus is not there: {error}"),
        }
        // Those that come back together shall not knock together.
        let wait = pause.mul_f64(0.5 + fastrand::f64());
        pause = (2 * pause).min(longest);
        if session.wait(wait, &mut orders).await.is_err() {
            return;
        }
    }
}
