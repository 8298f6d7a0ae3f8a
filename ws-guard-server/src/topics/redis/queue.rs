//! The entries of a queue topic that this server has: each is with one client until it is acknowledged.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{Cmd, RedisResult};
use tokio::{sync::Notify, time::timeout};

use super::{
    keys::Keys,
    link::call,
    session::{Shared, id, position},
};
use crate::topics::{
    bus::{BusError, Handed, Promise},
    log::{Entry, Position},
    mailbox::Mailbox,
    protocol,
    rules::Queueing,
};

/// Entries of a server that does not say so often that it is there are taken over; of one whose connection
/// to Redis has ended, at once.
const LEASE: Duration = Duration::from_secs(1);
/// How often it says so, and looks for entries of others.
const TICK: Duration = Duration::from_millis(250);
/// How often consumers that are gone are looked for, in ticks, and how long they have to be gone.
const TIDY: u32 = 40;
const GONE: Duration = Duration::from_secs(60);
/// Most entries that are asked for at a time.
const BATCH: usize = 64;
/// Idle for so long, an entry is anyone's.
const GIVEN_UP: Duration = Duration::from_secs(3600);

/// An entry's id, its data, and the number of its deliveries.
type Delivery = (String, Vec<u8>, u64);

/// An entry that a client has.
struct Out {
    connection: u64,
    since: Instant,
}

/// A queue topic on this server.
pub struct Queue {
    shared: Rc<Shared>,
    topic: Arc<str>,
    keys: Keys,
    rules: Cell<Queueing>,
    out: RefCell<HashMap<Position, Out>>,
    /// Whose turn it is.
    turn: Cell<usize>,
    /// Where looking for entries of others goes on.
    cursor: RefCell<String>,
    woken: Notify,
    over: Cell<bool>,
}

/// A client that can take more, and how many.
struct Taker {
    connection: u64,
    mailbox: Arc<Mailbox>,
    room: usize,
}

impl Queue {
    pub fn new(shared: Rc<Shared>, topic: Arc<str>, rules: Queueing) -> Rc<Queue> {
        Rc::new(Queue {
            keys: shared.keys(&topic),
            shared,
            topic,
            rules: Cell::new(rules),
            out: RefCell::default(),
            turn: Cell::new(0),
            cursor: RefCell::new("0-0".into()),
            woken: Notify::new(),
            over: Cell::new(false),
        })
    }

    /// There may be entries, or room for them.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    /// Go on under other numbers; what clients have stays theirs.
    pub fn adopt(&self, rules: Queueing) {
        self.rules.set(rules);
        self.wake();
    }

    /// No client of this server has the topic any more.
    pub fn end(&self) {
        self.over.set(true);
        self.woken.notify_one();
    }

    fn consumer(&self) -> &str {
        &self.shared.work.settings.server
    }

    /// Hand out entries until the end, and give back what is not acknowledged then.
    pub async fn run(self: Rc<Self>) {
        let mut ticks = 0;
        let mut next = Instant::now();
        while !self.over.get() {
            let due = Instant::now() >= next;
            if due {
                next = Instant::now() + TICK;
                ticks += 1;
            }
            if let Err(error) = self.work(due, ticks % TIDY == 1).await {
                if error.code() == Some("NOGROUP") {
                    if self.make_group().await.is_ok() {
                        continue;
                    }
                } else {
                    self.shared.failed(&error);
                }
            }
            let wait = next.saturating_duration_since(Instant::now());
            let _ = timeout(wait.max(Duration::from_millis(1)), self.woken.notified()).await;
        }
        let left: Vec<Position> = self.out.borrow_mut().drain().map(|(at, _)| at).collect();
        // Where Redis is away, the entries are taken over once their lease has ended.
        let _ = self.hold(&left, GIVEN_UP).await;
    }

    async fn work(&self, due: bool, tidy: bool) -> RedisResult<()> {
        if due {
            self.look_after().await?;
            self.claim().await?;
            if tidy {
                let mut command = self.call(&self.shared.link.scripts.tidy, &[&self.keys.stream]);
                command.arg(GONE.as_millis() as u64);
                self.shared.link.ask::<u64>(&self.keys.stream, &command).await?;
            }
        }
        while !self.over.get() && self.read().await? {}
        Ok(())
    }

    /// The group begins with the stream's first entry.
    async fn make_group(&self) -> RedisResult<()> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.keys.stream).arg(&self.keys.group).arg("0").arg("MKSTREAM");
        match self.shared.link.ask::<()>(&self.keys.stream, &command).await {
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            made => made,
        }
    }

    fn call(&self, script: &str, keys: &[&str]) -> Cmd {
        let mut command = call(script, keys);
        command.arg(&self.keys.group).arg(self.consumer());
        command
    }

    /// Clients that can take entries.
    fn takers(&self) -> Vec<Taker> {
        let subscribers = self.shared.work.exchange.subscribers(&self.topic);
        let mut has: HashMap<u64, usize> = HashMap::new();
        for out in self.out.borrow().values() {
            *has.entry(out.connection).or_default() += 1;
        }
        let room = |id: &u64| {
            self.rules.get().prefetch.saturating_sub(has.get(id).copied().unwrap_or_default())
        };
        let takers = subscribers.into_iter().map(|(connection, mailbox)| {
            let room = room(&connection);
            Taker { connection, mailbox, room }
        });
        let mut takers: Vec<Taker> = takers.filter(|taker| taker.room > 0).collect();
        takers.sort_unstable_by_key(|taker| taker.connection);
        takers
    }

    fn room(takers: &[Taker]) -> usize {
        takers.iter().map(|taker| taker.room).sum::<usize>().min(BATCH)
    }

    /// Say that entries are still in hand, and give up those whose client is gone or takes too long.
    async fn look_after(&self) -> RedisResult<()> {
        let subscribers = self.shared.work.exchange.subscribers(&self.topic);
        let there = |out: &Out| subscribers.iter().any(|(id, _)| *id == out.connection);
        let (mut kept, mut given_up) = (Vec::new(), Vec::new());
        self.out.borrow_mut().retain(|at, out| {
            let keep = there(out) && out.since.elapsed() < self.rules.get().ack_timeout;
            if keep { &mut kept } else { &mut given_up }.push(*at);
            keep
        });
        self.hold(&given_up, GIVEN_UP).await?;
        self.hold(&kept, Duration::ZERO).await
    }

    async fn hold(&self, entries: &[Position], idle: Duration) -> RedisResult<()> {
        for some in entries.chunks(BATCH) {
            let mut command = self.call(&self.shared.link.scripts.hold, &[&self.keys.stream]);
            command.arg(idle.as_millis() as u64);
            for at in some {
                command.arg(id(*at));
            }
            let (taken, gone): (Vec<String>, Vec<String>) =
                self.shared.link.ask(&self.keys.stream, &command).await?;
            self.shared.work.metrics.trimmed.inc_by(gone.len() as u64);
            for at in taken.iter().chain(&gone).filter_map(|id| position(id)) {
                self.out.borrow_mut().remove(&at);
            }
        }
        Ok(())
    }

    /// Take over what others have left behind.
    async fn claim(&self) -> RedisResult<()> {
        let takers = self.takers();
        let room = Queue::room(&takers);
        if room == 0 {
            return Ok(());
        }
        let keys = [&*self.keys.stream, &self.keys.dead];
        let mut command = self.call(&self.shared.link.scripts.claim, &keys);
        command.arg(LEASE.as_millis() as u64).arg(room).arg(self.rules.get().max_deliveries);
        command.arg(&*self.cursor.borrow()).arg(self.keys.present(""));
        /// What was taken, how many are dead letters, how many are gone, and where to go on.
        type Claimed = (Vec<Delivery>, u64, u64, String);
        let (entries, dead, lost, cursor): Claimed =
            self.shared.link.ask(&self.keys.stream, &command).await?;
        *self.cursor.borrow_mut() = cursor;
        let metrics = &self.shared.work.metrics;
        metrics.claimed.inc_by(entries.len() as u64);
        metrics.dead.inc_by(dead);
        metrics.trimmed.inc_by(lost);
        self.hand_out(takers, entries);
        Ok(())
    }

    /// Read new entries for as many as clients can take; whether there may be more.
    async fn read(&self) -> RedisResult<bool> {
        let takers = self.takers();
        let room = Queue::room(&takers);
        if room == 0 {
            return Ok(false);
        }
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.keys.group).arg(self.consumer());
        command.arg("COUNT").arg(room).arg("STREAMS").arg(&self.keys.stream).arg(">");
        type Streams = Vec<(String, Vec<(String, Vec<Vec<u8>>)>)>;
        let read: Option<Streams> = self.shared.link.ask(&self.keys.stream, &command).await?;
        let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
        let entries = entries.filter_map(|(id, fields)| Some((id, fields.into_iter().nth(1)?, 1)));
        let entries: Vec<_> = entries.collect();
        let more = entries.len() == room;
        self.hand_out(takers, entries);
        Ok(more)
    }

    /// Deliver each entry to the next client in turn that has room.
    fn hand_out(&self, mut takers: Vec<Taker>, entries: Vec<Delivery>) {
        let metrics = &self.shared.work.metrics;
        for (id, data, deliveries) in entries {
            let Some(at) = position(&id) else { continue };
            takers.retain(|taker| taker.room > 0);
            if takers.is_empty() {
                // Someone takes it over.
                return;
            }
            let turn = self.turn.get() % takers.len();
            self.turn.set(turn + 1);
            let Some(taker) = takers.get_mut(turn) else { return };
            taker.room -= 1;
            let text = protocol::queued(&self.topic, at, deliveries, &data);
            let topic = self.topic.clone();
            let entry = Entry { topic, position: None, text, at: 0, key: None };
            let out = Out { connection: taker.connection, since: Instant::now() };
            self.out.borrow_mut().insert(at, out);
            self.shared.work.exchange.hand(&taker.mailbox, entry);
            metrics.handed.inc();
            metrics.redelivered.inc_by(u64::from(deliveries > 1));
        }
    }

    /// A client is done with an entry.
    pub async fn acknowledge(self: Rc<Self>, handed: Handed, promise: Promise<bool>) {
        let out = self.out.borrow().get(&handed.position).map(|out| out.connection);
        if out != Some(handed.connection) {
            return promise(Ok(false));
        }
        let mut command = self.call(&self.shared.link.scripts.acknowledge, &[&self.keys.stream]);
        command.arg(id(handed.position));
        match self.shared.link.ask::<u8>(&self.keys.stream, &command).await {
            Ok(done) => {
                self.out.borrow_mut().remove(&handed.position);
                self.shared.work.metrics.acknowledged.inc_by(done.into());
                self.wake();
                promise(Ok(done == 1));
            }
            Err(error) => {
                self.shared.failed(&error);
                promise(Err(BusError::Unavailable(error.to_string())));
            }
        }
    }
}
