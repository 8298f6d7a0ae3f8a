//! What the bus does while it is connected, and what it knows when it is not.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_local,
    time::{sleep, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    Order, Settings, away,
    keys::Keys,
    link::{Link, Node, call, is_of_the_command, is_redirection},
    metrics::BusMetrics,
    queue::Queue,
};
use crate::topics::{
    bus::{BusError, Promise, Publication, Stored},
    exchange::{Arrival, Exchange},
    log::Position,
    rules::{History, Kind},
};

/// A stream that is neither published to nor loaded for as long is gone.
const FORGOTTEN: Duration = Duration::from_secs(86_400);
/// How long a key is known where there is no history to go by.
const KEY_KNOWN: Duration = Duration::from_secs(300);
/// Entries of a topic without a history: those that servers may be behind.
const TRANSPORT: usize = 1000;
/// How often positions are saved: each costs Redis and this server about as much as a publication.
const SAVE: Duration = Duration::from_secs(5);
/// When a topic is tried again that could not be read.
const AGAIN: Duration = Duration::from_secs(1);
/// Positions are saved in at most so many parts, of at least so many topics, with as long between two.
const SAVE_PARTS: usize = 50;
const SAVE_TOGETHER: usize = 16;
const SAVE_APART: Duration = Duration::from_millis(10);
/// What queues get to give back what they have in at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the thread works with.
pub struct Work {
    pub exchange: Arc<Exchange>,
    pub settings: Settings,
    pub metrics: BusMetrics,
    pub connected: Arc<AtomicBool>,
}

/// A topic that is read.
struct Reading {
    name: Arc<str>,
    keys: Keys,
    /// The id of the last entry that was read.
    last: String,
    /// That which was saved.
    saved: String,
}

/// What all tasks of a session share.
pub struct Shared {
    pub work: Work,
    pub link: Link,
    /// By the key of the stream.
    reading: RefCell<HashMap<String, Reading>>,
    /// Topics that are being loaded, and whether again when that is done.
    loading: RefCell<HashMap<Arc<str>, bool>>,
    /// Something happened that the connections do not survive.
    broken: Notify,
    /// Redis's clock, less this one's.
    ahead_ms: Cell<i64>,
    queues: RefCell<HashMap<Arc<str>, Rc<Queue>>>,
    /// Streams that are being read, and whether again when that is done.
    pub fetching: RefCell<HashMap<String, bool>>,
    /// Those of queues, which give back what they have.
    tasks: TaskTracker,
}

/// The bus's thread, over all its connections.
pub struct Session {
    work: Option<Work>,
    wanted: HashSet<Arc<str>>,
    /// Since when it is connected.
    served: Option<Instant>,
    shared: Option<Rc<Shared>>,
}

impl Session {
    pub fn new(work: Work) -> Session {
        Session { work: Some(work), wanted: HashSet::new(), served: None, shared: None }
    }

    /// How long it was connected, if it was since this was last asked.
    pub fn take_served(&mut self) -> Option<Duration> {
        self.served.take().map(|since| since.elapsed())
    }

    /// Connect and serve; `Ok` when there is nothing more to do, ever.
    pub async fn serve(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) -> RedisResult<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let (link, pushes) = match Link::open(&work.settings.place).await {
            Ok(opened) => opened,
            Err(error) => {
                self.work = Some(work);
                return Err(error);
            }
        };
        work.metrics.connects.inc();
        work.metrics.connected.set(1);
        work.connected.store(true, Ordering::Relaxed);
        tracing::info!("the bus is connected to Redis");
        self.served = Some(Instant::now());
        let shared = Rc::new(Shared {
            work,
            link,
            reading: RefCell::default(),
            loading: RefCell::default(),
            broken: Notify::new(),
            ahead_ms: Cell::new(0),
            queues: RefCell::default(),
            fetching: RefCell::default(),
            tasks: TaskTracker::new(),
        });
        self.shared = Some(shared.clone());
        for topic in &self.wanted {
            spawn_local(shared.clone().begin(topic.clone()));
        }
        tokio::select! {
            () = shared.broken.notified() => Err((redis::ErrorKind::Io, "a command failed").into()),
            error = shared.heed(pushes) => Err(error),
            error = shared.save() => Err(error),
            () = shared.obey(&mut self.wanted, orders) => {
                shared.queues.borrow_mut().drain().for_each(|(_, queue)| queue.end());
                shared.tasks.close();
                let _ = timeout(LAST_WORDS, shared.tasks.wait()).await;
                Ok(())
            }
        }
    }

    /// The connections are gone; what is under way fails by itself.
    pub fn disconnected(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.work.connected.store(false, Ordering::Relaxed);
            shared.work.metrics.connected.set(0);
            shared.queues.borrow_mut().drain().for_each(|(_, queue)| queue.end());
            let Work { exchange, settings, metrics, connected } = &shared.work;
            self.work = Some(Work {
                exchange: exchange.clone(),
                settings: settings.clone(),
                metrics: metrics.clone(),
                connected: connected.clone(),
            });
        }
    }

    /// Refuse what comes meanwhile; an error where nothing more will come.
    pub async fn wait(
        &mut self,
        time: Duration,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), ()> {
        let until = tokio::time::Instant::now() + time;
        while let Ok(order) = timeout_at(until, orders.recv()).await {
            match order.ok_or(())? {
                Order::Publish(_, promise, _) => promise(Err(away())),
                Order::Acknowledge(_, promise) => promise(Err(away())),
                Order::Joined(topic) => drop(self.wanted.insert(topic)),
                Order::Left(topic) => drop(self.wanted.remove(&topic)),
            }
        }
        Ok(())
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// The position that an id is.
pub fn position(id: &str) -> Option<Position> {
    let (epoch, offset) = id.split_once('-')?;
    Some(Position { epoch: epoch.parse().ok()?, offset: offset.parse().ok()? })
}

/// The id of a position.
pub fn id(position: Position) -> String {
    format!("{}-{}", position.epoch, position.offset)
}

/// Entries as Redis has them: ids, and names and values by turns.
pub type Entries = Vec<(String, Vec<Vec<u8>>)>;

impl Shared {
    /// Do what connections ask for, until there are none and never will be.
    async fn obey(
        self: &Rc<Self>,
        wanted: &mut HashSet<Arc<str>>,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Publish(publication, promise, under_way) => {
                    let shared = self.clone();
                    spawn_local(async move {
                        shared.publish(publication, promise).await;
                        drop(under_way);
                    });
                }
                Order::Acknowledge(handed, promise) => {
                    let queue = self.queues.borrow().get(&handed.topic).cloned();
                    match queue {
                        Some(queue) => drop(spawn_local(queue.acknowledge(handed, promise))),
                        None => promise(Ok(false)),
                    }
                }
                Order::Joined(topic) => {
                    wanted.insert(topic.clone());
                    spawn_local(self.clone().begin(topic));
                }
                Order::Left(topic) => {
                    wanted.remove(&topic);
                    self.end(&topic);
                }
            }
        }
    }

    pub fn keys(&self, topic: &str) -> Keys {
        Keys::of(&self.work.settings.cluster, topic)
    }

    /// A command failed; whether that ends the session.
    pub fn failed(&self, error: &RedisError) {
        if !is_of_the_command(error) {
            self.broken.notify_one();
        }
    }

    fn kind(&self, topic: &str) -> Kind {
        self.work.exchange.rule(topic).map_or(Kind::Live, |rule| rule.kind)
    }

    async fn publish(&self, publication: Publication, promise: Promise<Stored>) {
        let keys = self.keys(&publication.topic);
        let key = publication.key.as_ref().map(|key| keys.key(key));
        let both: Vec<&str> = [Some(&*keys.stream), key.as_deref()].into_iter().flatten().collect();
        let kind = self.kind(&publication.topic);
        let command = match &kind {
            Kind::Queue(queueing) => {
                let mut command = call(&self.link.scripts.enqueue, &both);
                let known = KEY_KNOWN.as_millis() as u64;
                command.arg(&publication.data[..]).arg(queueing.entries).arg(known);
                command
            }
            Kind::History(history) => self.store(&both, &publication, history),
            Kind::Live => {
                let bounds = History { messages: TRANSPORT, bytes: 0, age: KEY_KNOWN };
                self.store(&both, &publication, &bounds)
            }
        };
        let wanted = self.work.settings.wait_replicas;
        // Those of the node that has stored it.
        let send = async |node: &Node, asking| {
            let mut command = command.clone();
            command.arg(&node.run);
            let stored = node.ask::<(String, u8)>(&command, asking).await?;
            Ok((stored, if wanted > 0 { node.replicated(wanted).await? } else { 0 }))
        };
        let stored = match self.link.route(&keys.stream, send).await {
            Ok(((id, _), _)) if id.is_empty() => Err(BusError::Full),
            Ok((_, have)) if have < wanted => {
                let error = format!("{have} of {wanted} replicas have the publication");
                Err(BusError::Unavailable(error))
            }
            Ok(((id, repeated), _)) => Ok(Stored {
                position: position(&id).filter(|_| matches!(kind, Kind::History(_))),
                reached: None,
                repeated: repeated == 1,
            }),
            Err(error) => {
                self.failed(&error);
                Err(BusError::Unavailable(error.to_string()))
            }
        };
        self.work.metrics.failed.inc_by(u64::from(stored.is_err()));
        promise(stored);
    }

    fn store(&self, keys: &[&str], publication: &Publication, bounds: &History) -> Cmd {
        let age = bounds.age.as_millis() as u64;
        let forgotten = bounds.age.max(FORGOTTEN).as_millis() as u64;
        let mut command = call(&self.link.scripts.publish, keys);
        // One more, so that the position before the first is known.
        command.arg(&publication.data[..]).arg(bounds.messages + 1);
        command.arg(age).arg(forgotten);
        command
    }

    /// Read a topic from now on. Nothing of it is read while it is loaded.
    pub async fn begin(self: Rc<Self>, topic: Arc<str>) {
        let stream = self.keys(&topic).stream;
        self.reading.borrow_mut().remove(&stream);
        if let Some(again) = self.loading.borrow_mut().get_mut(&topic) {
            *again = true;
            return;
        }
        self.loading.borrow_mut().insert(topic.clone(), true);
        while self.loading.borrow_mut().get_mut(&topic).is_some_and(std::mem::take) {
            // The time before began to read it, and what is read now would be taken back by what is loaded.
            self.reading.borrow_mut().remove(&stream);
            self.begin_once(&topic).await;
        }
        self.loading.borrow_mut().remove(&topic);
    }

    async fn begin_once(self: &Rc<Self>, topic: &Arc<str>) {
        let Err(error) = self.load(topic).await else { return };
        if !is_of_the_command(&error) {
            return self.broken.notify_one();
        }
        tracing::warn!("a topic cannot be read from Redis: {error}");
        sleep(AGAIN).await;
        let wanted = !self.work.exchange.subscribers(topic).is_empty();
        if let Some(again) = self.loading.borrow_mut().get_mut(topic) {
            *again |= wanted;
        }
    }

    /// Have the exchange know what Redis has of a topic, and deliver what comes from there on.
    async fn load(self: &Rc<Self>, topic: &Arc<str>) -> RedisResult<()> {
        let (keys, kind) = (self.keys(topic), self.kind(topic));
        self.follow(&keys, matches!(kind, Kind::Queue(_))).await?;
        let (last, saved) = match &kind {
            Kind::Queue(_) => Default::default(),
            Kind::History(history) => {
                self.load_history(topic, &keys, history.messages + 1, history.age).await?
            }
            Kind::Live => self.load_history(topic, &keys, 1, FORGOTTEN).await?,
        };
        if self.work.exchange.subscribers(topic).is_empty() {
            // They left meanwhile, and the order to end may have come before this.
            return Ok(());
        }
        let reading = Reading { name: topic.clone(), keys: keys.clone(), saved, last };
        self.reading.borrow_mut().insert(keys.stream.clone(), reading);
        if let Kind::Queue(queueing) = kind {
            let mut queues = self.queues.borrow_mut();
            if let Some(queue) = queues.get(topic) {
                queue.adopt(queueing);
                return Ok(());
            }
            let queue = Queue::new(self.clone(), topic.clone(), queueing);
            queues.insert(topic.clone(), queue.clone());
            self.tasks.spawn_local(queue.run());
        } else {
            // What was pushed since it was loaded.
            spawn_local(self.clone().fetch(keys.stream));
        }
        Ok(())
    }

    /// Load the latest entries; the id of the last, and the one that this server has saved.
    async fn load_history(
        &self,
        topic: &Arc<str>,
        keys: &Keys,
        most: usize,
        age: Duration,
    ) -> RedisResult<(String, String)> {
        let mut command = call(&self.link.scripts.open, &[&keys.stream, &keys.delivered]);
        command.arg(most).arg(age.max(FORGOTTEN).as_millis() as u64);
        command.arg(&self.work.settings.server);
        let send = async |node: &Node, asking| {
            let mut command = command.clone();
            command.arg(&node.run);
            node.ask(&command, asking).await
        };
        let (now, mut entries, saved): (i64, Entries, String) =
            self.link.route(&keys.stream, send).await?;
        self.ahead_ms.set(now - now_ms());
        self.work.metrics.reloads.inc();
        let last = entries.first().map(|(id, _)| id.clone()).unwrap_or_default();
        if matches!(self.kind(topic), Kind::History(_)) {
            let ids: Vec<Position> = entries.iter().filter_map(|(id, _)| position(id)).collect();
            self.continues(topic, position(&saved), &ids);
        }
        let oldest = entries.pop().and_then(|(id, _)| position(&id)).unwrap_or_default();
        let arrivals = entries.into_iter().rev().filter_map(|(id, fields)| {
            let (data, stored_ms) = content(fields)?;
            Some(Arrival { position: position(&id)?, data, age: since(stored_ms, now) })
        });
        self.work.exchange.load(topic, oldest, arrivals.collect());
        Ok((last, saved))
    }

    /// Say how much was stored while this server did not read, as the position tells that it saved.
    fn continues(&self, topic: &str, delivered: Option<Position>, there: &[Position]) {
        let (Some(delivered), Some(oldest)) = (delivered, there.last()) else { return };
        let later = there.iter().filter(|at| **at > delivered).count() as u64;
        let missed = match *oldest > delivered {
            true => oldest.offset.saturating_sub(delivered.offset),
            false => 0,
        };
        // The oldest is there for its position only.
        let caught_up = later.saturating_sub(u64::from(missed > 0));
        if later > 0 {
            tracing::info!(topic, caught_up, missed, "a topic went on while it was not read here");
        }
        self.work.metrics.caught_up.inc_by(caught_up);
        self.work.metrics.missed.inc_by(missed);
    }

    fn end(self: &Rc<Self>, topic: &Arc<str>) {
        let queue = self.queues.borrow_mut().remove(topic);
        queue.iter().for_each(|queue| queue.end());
        let keys = self.keys(topic);
        self.reading.borrow_mut().remove(&keys.stream);
        self.unfollow(keys.clone(), matches!(self.kind(topic), Kind::Queue(_)));
        // Nobody waits for it here: what comes now is not missed.
        let shared = self.clone();
        let mut command = redis::cmd("HDEL");
        command.arg(keys.delivered).arg(&self.work.settings.server);
        spawn_local(async move { shared.link.ask::<u64>(&keys.stream, &command).await });
    }

    /// Whether entries of a stream are delivered here.
    pub fn is_read(&self, stream: &str) -> bool {
        self.reading.borrow().contains_key(stream)
    }

    /// The topic of a stream that is read.
    pub fn name(&self, stream: &str) -> Option<Arc<str>> {
        self.reading.borrow().get(stream).map(|reading| reading.name.clone())
    }

    /// Whether a topic's entries are handed out one by one.
    pub fn has_queue(&self, topic: &str) -> bool {
        self.queues.borrow().contains_key(topic)
    }

    /// Streams whose entries are delivered here.
    pub fn streams(&self) -> Vec<String> {
        self.reading.borrow().keys().cloned().collect()
    }

    /// The last entry of a stream that was read.
    pub fn last_read(&self, stream: &str) -> Option<String> {
        self.reading.borrow().get(stream).map(|reading| reading.last.clone())
    }

    /// Whether this is the last entry of a stream that was read.
    pub fn is_last_read(&self, stream: &str, id: &str) -> bool {
        self.reading.borrow().get(stream).is_some_and(|reading| reading.last == id)
    }

    /// There may be more of a queue; false where the stream is none.
    pub fn wake_queue(&self, stream: &str) -> bool {
        let queue = self.name(stream).and_then(|topic| self.queues.borrow().get(&topic).cloned());
        queue.iter().for_each(|queue| queue.wake());
        queue.is_some()
    }

    /// Deliver the next entry of a stream; whether it was. Where something is missing, or the stream is
    /// another one, its topic is loaded again.
    pub fn arrived(self: &Rc<Self>, stream: &str, id: String, data: Bytes, stored_ms: i64) -> bool {
        let Some(topic) = self.name(stream) else { return false };
        let age = since(stored_ms, now_ms() + self.ahead_ms.get());
        let is_next = position(&id).filter(|_| !data.is_empty()).is_some_and(|position| {
            self.work.metrics.lag.observe(age.as_secs_f64());
            self.work.exchange.arrive(&topic, &Arrival { position, data, age })
        });
        let mut reading = self.reading.borrow_mut();
        if !is_next {
            reading.remove(stream);
            spawn_local(self.clone().begin(topic));
        } else if let Some(reading) = reading.get_mut(stream) {
            reading.last = id;
        }
        is_next
    }

    /// Save how far this server has read, until that fails.
    async fn save(&self) -> RedisError {
        loop {
            sleep(SAVE).await;
            let streams = self.streams();
            // Publications would wait behind all of them at once.
            let part = (streams.len() / SAVE_PARTS).max(SAVE_TOGETHER);
            for part in streams.chunks(part) {
                if let Err(error) = self.save_some(part).await {
                    return error;
                }
                sleep(SAVE_APART).await;
            }
        }
    }

    async fn save_some(&self, streams: &[String]) -> RedisResult<()> {
        let mut saves = vec![Vec::new(); self.link.nodes.len()];
        for stream in streams {
            let mut reading = self.reading.borrow_mut();
            // It may have ended meanwhile.
            let Some(reading) = reading.get_mut(stream) else { continue };
            if reading.last == reading.saved {
                continue;
            }
            reading.saved.clone_from(&reading.last);
            let key = &reading.keys.delivered;
            saves[self.link.index(key)].push((key.clone(), reading.last.clone()));
        }
        for (node, saves) in self.link.nodes.iter().zip(saves) {
            match self.save_at(node, &saves).await {
                Err(error) if !is_of_the_command(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn save_at(&self, node: &Node, saves: &[(String, String)]) -> RedisResult<()> {
        let save = |(key, last): &(String, String)| {
            let mut save = redis::cmd("HSET");
            save.arg(key).arg(&self.work.settings.server).arg(last);
            let mut keep = redis::cmd("PEXPIRE");
            keep.arg(key).arg(FORGOTTEN.as_millis() as u64);
            [save, keep]
        };
        let mut all = redis::pipe();
        for command in saves.iter().flat_map(save) {
            all.add_command(command).ignore();
        }
        if saves.is_empty() {
            return Ok(());
        }
        match all.query_async(&mut node.commands.clone()).await {
            Err(error) if is_redirection(&error) => {}
            done => return done,
        }
        for one in saves {
            for command in save(one) {
                self.link.ask::<Value>(&one.0, &command).await?;
            }
        }
        Ok(())
    }
}

/// What an entry says, and when it was stored, unless it is only a topic's beginning.
pub fn content(fields: Vec<Vec<u8>>) -> Option<(Bytes, i64)> {
    let mut fields = fields.into_iter();
    let data = fields.nth(1)?;
    let stored_ms = std::str::from_utf8(&fields.nth(1)?).ok()?.parse().ok()?;
    (!data.is_empty()).then(|| (data.into(), stored_ms))
}

/// The time between two, or none.
fn since(before_ms: i64, now_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms - before_ms).unwrap_or_default())
}
