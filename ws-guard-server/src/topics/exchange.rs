//! Which of this server's connections want which topic, and what topics have said lately.

use std::{
    collections::{HashMap, hash_map::Entry as Place},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    bus::{Bus, Publication, Stored},
    log::{Entry, Log, Position},
    mailbox::{Answer, Delivery, Mailbox},
    metrics::TopicMetrics,
    protocol,
    rules::{History, InForce, Kind, Rule, Rules, RulesError},
};
use crate::memory_budget::MemoryBudget;

/// What the histories of all topics together may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    pub bytes: usize,
    /// Topics that have one; beyond that, those that were not used for longest lose it.
    pub topics: usize,
}

impl HistoryBounds {
    /// Those of the command line.
    pub const DEFAULT: HistoryBounds = HistoryBounds { bytes: 64 << 20, topics: 16_384 };
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub position: Position,
    /// Whether all that was missed follows, where a position was asked for.
    pub recovered: Option<bool>,
}

/// How a subscription is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub since: Option<Position>,
    /// The request's number.
    pub id: Option<u64>,
    /// By a request, which waits for the answer.
    pub asked: bool,
}

/// What comes of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The topic has no positions.
    Live,
    At(Placed),
    /// The mailbox gets the answer, once the bus has loaded the topic.
    Later,
}

/// Something that came over a bus.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub position: Position,
    pub data: Bytes,
    /// How long ago it was stored.
    pub age: Duration,
}

struct Waiting {
    connection: u64,
    wish: Wish,
}

/// What is known of a topic.
struct State {
    /// Mailboxes by the numbers of their connections.
    subscribers: HashMap<u64, Arc<Mailbox>>,
    log: Option<Log>,
    /// The bus carries the topic, or there is none to wait for.
    ready: bool,
    /// Those who subscribed before the bus has loaded the log.
    waiting: Vec<Waiting>,
    /// When it was last published or subscribed to.
    used: u64,
}

struct Topic {
    rule: Option<Arc<Rule>>,
    state: Mutex<State>,
}

impl Topic {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left subscribers and entries where they were.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> Option<&History> {
        self.rule.as_ref().and_then(|rule| rule.history())
    }
}

type Topics = HashMap<Arc<str>, Topic>;

/// Topics by their names.
pub struct Exchange {
    topics: RwLock<Topics>,
    rules: Arc<InForce>,
    bounds: HistoryBounds,
    /// Memory is short: mailboxes take less.
    short: AtomicBool,
    started: Instant,
    swept: Mutex<Instant>,
    /// Topics at which it is worth looking for some to forget.
    crowded: AtomicUsize,
    pub(super) metrics: TopicMetrics,
    held: MemoryBudget,
}

/// Topics are looked through for old entries at most so often.
const SWEEP: Duration = Duration::from_secs(1);

impl Exchange {
    pub(super) fn new(
        rules: Arc<InForce>,
        bounds: HistoryBounds,
        metrics: TopicMetrics,
        held: MemoryBudget,
    ) -> Exchange {
        let now = Instant::now();
        metrics.history_limit.set(i64::try_from(bounds.bytes).unwrap_or(i64::MAX));
        Exchange {
            topics: RwLock::default(),
            rules,
            bounds,
            short: AtomicBool::new(false),
            started: now,
            swept: Mutex::new(now),
            crowded: AtomicUsize::new(bounds.topics),
            metrics,
            held,
        }
    }

    pub(super) fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// The rule of a topic.
    pub fn rule(&self, topic: &str) -> Option<Arc<Rule>> {
        self.rules.rules().of(topic).cloned()
    }

    /// Milliseconds on the clock that entries are stamped with.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Put a publication that has no position into the mailbox of each subscriber; how many had room.
    pub fn deliver(&self, publication: &Publication) -> usize {
        let topics = self.read();
        let Some(topic) = topics.get(&publication.topic) else { return 0 };
        let entry = self.entry(publication, None, self.now());
        self.distribute(&topic.state(), &entry)
    }

    fn entry(&self, publication: &Publication, position: Option<Position>, at: u64) -> Arc<Entry> {
        let text = protocol::message(&publication.topic, position, &publication.data);
        Arc::new(Entry {
            topic: publication.topic.clone(),
            position,
            // All mailboxes refer to one text.
            text: self.held.shared(text),
            at,
            key: publication.key.clone(),
        })
    }

    fn distribute(&self, state: &State, entry: &Arc<Entry>) -> usize {
        let short = self.is_short();
        let mut reached = 0;
        for mailbox in state.subscribers.values() {
            let delivery = mailbox.deliver(entry.clone(), short);
            self.metrics.delivered(delivery);
            reached += usize::from(matches!(delivery, Delivery::Queued { .. }));
        }
        reached
    }

    /// Give a publication its position in this process, keep it as long as its topic's rule says, and
    /// deliver it.
    pub fn store(&self, publication: &Publication) -> Stored {
        let mut topics = self.read();
        let rule = self.rule(&publication.topic);
        let has_history = rule.is_some_and(|rule| rule.history().is_some());
        if has_history && !topics.contains_key(&publication.topic) {
            drop(topics);
            self.make(&publication.topic, false);
            topics = self.read();
        }
        let Some(topic) = topics.get(&publication.topic) else {
            return Stored { reached: Some(0), ..Stored::default() };
        };
        let now = self.now();
        let mut state = topic.state();
        let Some(log) = &mut state.log else {
            let entry = self.entry(publication, None, now);
            let reached = Some(self.distribute(&state, &entry));
            return Stored { reached, ..Stored::default() };
        };
        log.trim(now);
        if let Some(position) = publication.key.as_ref().and_then(|key| log.find(key)) {
            return Stored { position: Some(position), reached: None, repeated: true };
        }
        let last = log.last();
        let position = Some(Position { offset: last.offset + 1, ..last });
        let entry = self.entry(publication, position, now);
        self.change(&mut state, |log| log.append(entry.clone()));
        state.used = now;
        let reached = Some(self.distribute(&state, &entry));
        Stored { position, reached, repeated: false }
    }

    /// Change a log, and keep the histories of all topics within their bound.
    fn change<T>(&self, state: &mut State, change: impl FnOnce(&mut Log) -> T) -> Option<T> {
        let log = state.log.as_mut()?;
        let before = log.bytes();
        let changed = change(log);
        let gauge = &self.metrics.history_bytes;
        gauge.add(log.bytes() as i64 - before as i64);
        while gauge.get() > self.bounds.bytes as i64 {
            let before = log.bytes();
            if !log.drop_oldest() {
                break;
            }
            gauge.sub(before as i64 - log.bytes() as i64);
        }
        Some(changed)
    }

    /// Have a topic, with a history of this process's own unless the bus is `remote`.
    fn make(&self, name: &Arc<str>, remote: bool) {
        let mut topics = self.write();
        self.topic(&mut topics, name, remote);
        self.metrics.topics.set(topics.len() as i64);
    }

    fn topic<'a>(&self, topics: &'a mut Topics, name: &Arc<str>, remote: bool) -> &'a Topic {
        if !topics.contains_key(name) && topics.len() >= self.crowded.load(Ordering::Relaxed) {
            self.forget_some(topics);
        }
        topics.entry(name.clone()).or_insert_with(|| {
            let rule = self.rule(name);
            let history = rule.as_ref().and_then(|rule| rule.history()).filter(|_| !remote);
            let log = history.map(|history| Log::new(Position::beginning(), *history));
            let (subscribers, waiting) = (HashMap::new(), Vec::new());
            let ready = !remote || rule.as_ref().is_some_and(|rule| rule.queueing().is_some());
            let state = State { subscribers, log, ready, waiting, used: self.now() };
            Topic { rule, state: Mutex::new(state) }
        })
    }

    /// Forget a sixteenth of the topics, those without subscribers that were not used for longest.
    fn forget_some(&self, topics: &mut Topics) {
        let mut idle: Vec<(u64, Arc<str>)> = topics
            .iter()
            .filter_map(|(name, topic)| {
                let state = topic.state();
                state.subscribers.is_empty().then(|| (state.used, name.clone()))
            })
            .collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        idle.truncate((self.bounds.topics / 16).max(1));
        idle.iter().for_each(|(_, name)| self.forget(topics, name));
        // Where most have subscribers, looking again at once would be in vain.
        let next = topics.len() + self.bounds.topics / 16;
        self.crowded.store(next.max(self.bounds.topics), Ordering::Relaxed);
    }

    fn forget(&self, topics: &mut Topics, name: &Arc<str>) {
        let Some(topic) = topics.remove(name) else { return };
        let bytes = topic.state().log.as_ref().map_or(0, Log::bytes);
        self.metrics.history_bytes.sub(bytes as i64);
    }

    /// Let go of entries that are too old, and of topics that were not used in that time; at
    /// most once a second.
    pub fn sweep(&self) {
        let Ok(mut swept) = self.swept.try_lock() else { return };
        if swept.elapsed() < SWEEP {
            return;
        }
        *swept = Instant::now();
        let now = self.now();
        let is_over = |topic: &Topic| {
            let state = topic.state();
            let age = topic.history().map_or(Duration::ZERO, |history| history.age);
            let unused = now.saturating_sub(state.used) > age.as_millis() as u64;
            state.subscribers.is_empty() && unused
        };
        let topics = self.read();
        for topic in topics.values() {
            self.change(&mut topic.state(), |log| log.trim(now));
        }
        let over = topics.iter().filter(|(_, topic)| is_over(topic));
        let over: Vec<Arc<str>> = over.map(|(name, _)| name.clone()).collect();
        drop(topics);
        if over.is_empty() {
            return;
        }
        let mut topics = self.write();
        for name in over {
            if topics.get(&name).is_some_and(is_over) {
                self.forget(&mut topics, &name);
            }
        }
        self.metrics.topics.set(topics.len() as i64);
    }

    /// Let connection `id` have a topic. The bus is told in the order in which it happens.
    pub(super) fn join(
        &self,
        name: &Arc<str>,
        id: u64,
        mailbox: &Arc<Mailbox>,
        wish: Wish,
        bus: &dyn Bus,
    ) -> Joined {
        let mut topics = self.write();
        let topic = self.topic(&mut topics, name, bus.is_remote());
        let mut state = topic.state();
        if state.subscribers.is_empty() {
            bus.joined(name);
        }
        let known = state.subscribers.insert(id, mailbox.clone()).is_some();
        if !known {
            self.metrics.subscriptions.inc();
        }
        state.used = self.now();
        let joined = if state.ready {
            let now = self.now();
            self.change(&mut state, |log| log.trim(now));
            let placed = self.place(&state, name, mailbox, wish.since, known);
            placed.map_or(Joined::Live, Joined::At)
        } else {
            state.waiting.push(Waiting { connection: id, wish });
            Joined::Later
        };
        drop(state);
        self.metrics.topics.set(topics.len() as i64);
        joined
    }

    /// Where a subscriber begins, with all that it missed in its mailbox if it can have that.
    fn place(
        &self,
        state: &State,
        name: &Arc<str>,
        mailbox: &Mailbox,
        since: Option<Position>,
        known: bool,
    ) -> Option<Placed> {
        let log = state.log.as_ref()?;
        let Some(since) = since else {
            let first = mailbox.first_of(name).filter(|_| known);
            let position = first.map_or(log.last(), |first| log.before(first));
            return Some(Placed { position, recovered: None });
        };
        let missed = log.since(since);
        let recovered = missed.is_some_and(|missed| mailbox.replay(name, missed, self.is_short()));
        if !recovered {
            mailbox.discard(name);
        }
        self.metrics.resubscribed(recovered);
        Some(Placed { position: log.last(), recovered: Some(recovered) })
    }

    /// Let it have it no more.
    pub(super) fn leave(&self, name: &Arc<str>, id: u64, bus: &dyn Bus) {
        let mut topics = self.write();
        let Place::Occupied(place) = topics.entry(name.clone()) else { return };
        let topic = place.get();
        let mut state = topic.state();
        if let Some(mailbox) = state.subscribers.remove(&id) {
            mailbox.discard(name);
            self.metrics.subscriptions.dec();
        }
        state.waiting.retain(|waiting| waiting.connection != id);
        state.used = self.now();
        let empty = state.subscribers.is_empty();
        // A history of this process's own stays for those who come back.
        let over = empty && (bus.is_remote() || state.log.is_none());
        drop(state);
        if empty {
            bus.left(name);
        }
        if over {
            self.forget(&mut topics, name);
        }
        self.metrics.topics.set(topics.len() as i64);
    }

    /// The position up to which a subscriber was sent a topic.
    pub(super) fn position(&self, name: &Arc<str>, mailbox: &Mailbox) -> Option<Position> {
        let topics = self.read();
        let state = topics.get(name)?.state();
        Some(self.place(&state, name, mailbox, None, true)?.position)
    }

    // A panic while it was held left every topic where it was.
    fn read(&self) -> RwLockReadGuard<'_, Topics> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Topics> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(rule: Option<&Arc<Rule>>) -> Kind {
    rule.map_or(Kind::Live, |rule| rule.kind)
}

/// What other rules mean for topics that there are.
impl Exchange {
    /// Whether all topics can go on under these rules.
    pub(super) fn check_rules(&self, rules: &Rules) -> Result<(), RulesError> {
        let is_queue = |rule: Option<&Arc<Rule>>| matches!(kind(rule), Kind::Queue(_));
        let topics = self.read();
        let mut other = topics
            .iter()
            .filter(|(name, topic)| is_queue(topic.rule.as_ref()) != is_queue(rules.of(name)));
        other.next().map_or(Ok(()), |(name, _)| Err(RulesError::OtherKind(name.clone())))
    }

    /// Have topics follow the rules that are in force now. One that gets a history, or has one no
    /// more, begins anew.
    pub(super) fn adopt_rules(&self, bus: &dyn Bus) {
        let now = self.now();
        let mut topics = self.write();
        for (name, topic) in topics.iter_mut() {
            let rule = self.rule(name);
            let (before, after) = (kind(topic.rule.as_ref()), kind(rule.as_ref()));
            topic.rule = rule;
            let mut state = topic.state();
            match (before, after) {
                _ if before == after => {}
                (Kind::History(_), Kind::History(bounds)) => {
                    self.change(&mut state, |log| log.bound(bounds, now));
                }
                (Kind::Queue(_), _) | (_, Kind::Queue(_)) => rejoin(&state, name, bus),
                _ => self.begin_anew(&mut state, name, &after, bus),
            }
        }
    }

    fn begin_anew(&self, state: &mut State, name: &Arc<str>, kind: &Kind, bus: &dyn Bus) {
        let before = state.log.take().map_or(0, |log| log.bytes());
        self.metrics.history_bytes.sub(before as i64);
        // Whatever they had does not reach to what comes now.
        let wish = Wish { since: Some(Position::default()), ..Wish::default() };
        // Those who have asked and not been answered are answered as they have asked.
        let asked: Vec<u64> = state.waiting.iter().map(|waiting| waiting.connection).collect();
        let others = state.subscribers.keys().filter(|id| !asked.contains(id));
        state.waiting.extend(others.map(|id| Waiting { connection: *id, wish }));
        if bus.is_remote() {
            state.ready = false;
            return rejoin(state, name, bus);
        }
        if let Kind::History(history) = kind {
            state.log = Some(Log::new(Position::beginning(), *history));
        }
        self.answer_waiting(state, name);
    }
}

/// Let the bus begin with a topic again.
fn rejoin(state: &State, name: &Arc<str>, bus: &dyn Bus) {
    if !state.subscribers.is_empty() {
        bus.left(name);
        bus.joined(name);
    }
}

/// What a bus that stores histories does with them.
impl Exchange {
    /// Subscribers of a topic.
    pub fn subscribers(&self, topic: &str) -> Vec<(u64, Arc<Mailbox>)> {
        let topics = self.read();
        let Some(topic) = topics.get(topic) else { return Vec::new() };
        let state = topic.state();
        state.subscribers.iter().map(|(id, mailbox)| (*id, mailbox.clone())).collect()
    }

    /// Deliver an entry of a queue topic to the one that has it now.
    pub(super) fn hand(&self, mailbox: &Mailbox, entry: Entry) {
        let text = self.held.shared(entry.text);
        let entry = Arc::new(Entry { text, ..entry });
        self.metrics.delivered(mailbox.deliver(entry, self.is_short()));
    }

    /// The bus has read what it has of a topic: all that came after `floor`. Subscribers go on where
    /// they are if that still exists; otherwise they begin anew, and are told.
    pub fn load(&self, name: &Arc<str>, floor: Position, arrivals: Vec<Arrival>) {
        let topics = self.read();
        let Some(topic) = topics.get(name) else { return };
        let mut state = topic.state();
        if let Some(history) = topic.history() {
            self.replace(&mut state, name, history, floor, arrivals);
        }
        state.ready = true;
        self.answer_waiting(&mut state, name);
    }

    /// Tell those who wait where they begin.
    fn answer_waiting(&self, state: &mut State, name: &Arc<str>) {
        for Waiting { connection, wish } in std::mem::take(&mut state.waiting) {
            let Some(mailbox) = state.subscribers.get(&connection) else { continue };
            // Its connection is another thread's.
            let _pause = mailbox.pause();
            let placed = self.place(state, name, mailbox, wish.since, false);
            let text = match placed {
                Some(placed) => protocol::subscribed(name, Some(placed), wish.id),
                None => protocol::subscribed_live(name, wish.since.is_some(), wish.id),
            };
            mailbox.answer(Answer { text, reached: 0, expected: wish.asked });
        }
    }

    fn replace(
        &self,
        state: &mut State,
        name: &Arc<str>,
        history: &History,
        floor: Position,
        arrivals: Vec<Arrival>,
    ) {
        let now = self.now();
        let mut log = Log::new(floor, *history);
        for arrival in arrivals {
            let entry = self.arrived(name, &arrival, now);
            if !log.append(entry.clone()) {
                // A hole: what came before it is not of this history.
                log = Log::new(arrival.position, *history);
            }
        }
        let before = state.log.replace(log);
        let bytes = |log: &Option<Log>| log.as_ref().map_or(0, Log::bytes) as i64;
        self.metrics.history_bytes.add(bytes(&state.log) - bytes(&before));
        self.change(state, |_| ());
        if let Some(before) = before {
            self.carry_over(state, name, before.last());
        }
    }

    /// Go on at a position in a log that was loaded again, or begin anew.
    fn carry_over(&self, state: &State, name: &Arc<str>, last: Position) {
        let Some(log) = &state.log else { return };
        let waiting = |id: &u64| state.waiting.iter().any(|waiting| waiting.connection == *id);
        let subscribers: Vec<_> = state.subscribers.iter().filter(|(id, _)| !waiting(id)).collect();
        if let Some(missed) = log.since(last) {
            for entry in missed {
                for (_, mailbox) in &subscribers {
                    self.metrics.delivered(mailbox.deliver(entry.clone(), self.is_short()));
                }
            }
            return;
        }
        let placed = Placed { position: log.last(), recovered: Some(false) };
        let text = protocol::subscribed(name, Some(placed), None);
        for (_, mailbox) in subscribers {
            self.metrics.resubscribed(false);
            mailbox.discard(name);
            mailbox.answer(Answer::unasked(text.clone()));
        }
    }

    fn arrived(&self, name: &Arc<str>, arrival: &Arrival, now: u64) -> Arc<Entry> {
        let data = arrival.data.clone();
        let publication = Publication { topic: name.clone(), data, key: None };
        let at = now.saturating_sub(arrival.age.as_millis() as u64);
        self.entry(&publication, Some(arrival.position), at)
    }

    /// The next publication of a topic came over the bus; false where it is not the next, so that the
    /// topic has to be loaded again.
    pub fn arrive(&self, name: &Arc<str>, arrival: &Arrival) -> bool {
        let topics = self.read();
        let Some(topic) = topics.get(name) else { return true };
        if topic.history().is_none() {
            let data = arrival.data.clone();
            let publication = Publication { topic: name.clone(), data, key: None };
            let entry = self.entry(&publication, None, self.now());
            self.distribute(&topic.state(), &entry);
            return true;
        }
        let mut state = topic.state();
        let entry = self.arrived(name, arrival, self.now());
        let next = self.change(&mut state, |log| log.append(entry.clone()));
        if next == Some(true) {
            self.distribute(&state, &entry);
        }
        next == Some(true)
    }
}
