//! Recent history of connections: causes of the latest ends, and events of each.
//! It is bounded, whatever happens, and nothing of it is kept by connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::broadcast;

use super::{
    cause::Cause,
    heartbeat::State,
    record::{Ended, Origin},
};
use crate::{
    timestamp::Timestamp,
    view::{ConnectionView, StoryEvent},
};

/// Number of ended connections kept.
const GONE: usize = 1024;
/// Number of events kept.
const EVENTS: usize = 4096;
/// Number of events that a follower may lag behind before it loses some.
const LAG: usize = 1024;

/// Event of a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// End of the handshake, and its duration.
    Opened(Duration),
    /// New state of the heartbeat.
    State(State),
    /// Close by this side.
    Closing(Cause),
    Closed(Cause, u16),
    /// Ping sent; this and the following are recorded only for followed connections.
    PingSent,
    Pong(Option<Duration>),
    /// Ping of the peer, and whether it is answered.
    Ping(bool),
    /// Message, and its length in bytes.
    Message(usize),
    Subscribed(Box<str>),
    Unsubscribed(Box<str>),
    /// Publications that did not fit into the connection's queue.
    Dropped(u64),
}

impl Happened {
    fn told(&self) -> (&'static str, String) {
        let ms = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        match self {
            Happened::Opened(took) => ("opened", format!("handshake took {}", ms(took))),
            Happened::State(state) => ("state", state.name().into()),
            Happened::Closing(cause) => ("closing", cause.name().into()),
            Happened::Closed(cause, code) => ("closed", format!("{}, {code}", cause.name())),
            Happened::PingSent => ("ping_sent", String::new()),
            Happened::Pong(Some(time)) => ("pong", format!("after {}", ms(time))),
            Happened::Pong(None) => ("pong", "answers no ping".into()),
            Happened::Ping(true) => ("ping", "answered".into()),
            Happened::Ping(false) => ("ping", "over the limit".into()),
            Happened::Message(bytes) => ("message", format!("{bytes} bytes")),
            Happened::Subscribed(topic) => ("subscribed", topic.to_string()),
            Happened::Unsubscribed(topic) => ("unsubscribed", topic.to_string()),
            Happened::Dropped(count) => ("dropped", format!("{count} publications")),
        }
    }
}

/// Event in its internal form.
#[derive(Clone, Debug)]
struct Entry {
    time: SystemTime,
    id: u64,
    what: Happened,
}

impl Entry {
    fn view(&self) -> StoryEvent {
        let (event, what) = self.what.told();
        let time = Timestamp(self.time);
        StoryEvent { time, connection_id: self.id, event: event.into(), what }
    }
}

/// Connection that ended.
struct Gone {
    origin: Origin,
    ended: Ended,
    at: SystemTime,
}

/// Recent history of a server.
pub struct Journal {
    /// Ping interval of every connection.
    ping_interval: Duration,
    gone: Mutex<VecDeque<Gone>>,
    events: Mutex<VecDeque<Entry>>,
    sender: broadcast::Sender<Entry>,
    /// Followed connections, and the number of their followers.
    followed: Mutex<HashMap<u64, usize>>,
    followers: AtomicUsize,
}

impl Journal {
    pub fn new(ping_interval: Duration) -> Journal {
        Journal {
            ping_interval,
            gone: Mutex::default(),
            events: Mutex::default(),
            sender: broadcast::channel(LAG).0,
            followed: Mutex::default(),
            followers: AtomicUsize::new(0),
        }
    }

    /// Record an event, and report it to followers.
    pub fn record(&self, id: u64, what: Happened) {
        let entry = Entry { time: SystemTime::now(), id, what };
        let mut events = lock(&self.events);
        // Sent under the lock, so that a new follower gets each event once.
        if self.followers.load(Ordering::Relaxed) > 0 {
            // It is no error if there is no follower.
            let _ = self.sender.send(entry.clone());
        }
        push(&mut events, EVENTS, entry);
    }

    /// Record an event that is only for followers of the connection.
    /// Without any followers it costs reading a counter.
    pub fn detail(&self, id: u64, what: impl FnOnce() -> Happened) {
        if self.followers.load(Ordering::Relaxed) > 0 && lock(&self.followed).contains_key(&id) {
            self.record(id, what());
        }
    }

    /// Record the end of a connection.
    pub fn bury(&self, origin: &Origin, ended: &Ended) {
        self.record(origin.id, Happened::Closed(ended.cause, ended.code()));
        let gone = Gone { origin: origin.clone(), ended: ended.clone(), at: SystemTime::now() };
        push(&mut lock(&self.gone), GONE, gone);
    }

    /// Return the connections that ended after `since`, the oldest first.
    pub fn closed(&self, since: SystemTime) -> Vec<ConnectionView> {
        lock(&self.gone)
            .iter()
            .filter(|gone| gone.at >= since)
            .map(|gone| gone.view(self.ping_interval))
            .collect()
    }

    /// Return one ended connection.
    pub fn closed_one(&self, id: u64) -> Option<ConnectionView> {
        lock(&self.gone)
            .iter()
            .rev()
            .find(|gone| gone.origin.id == id)
            .map(|gone| gone.view(self.ping_interval))
    }

    /// Return the recorded events of a connection, the oldest first.
    pub fn story(&self, id: u64) -> Vec<StoryEvent> {
        lock(&self.events).iter().filter(|entry| entry.id == id).map(Entry::view).collect()
    }

    /// Return the recorded events, and a receiver of later ones.
    pub fn follow(self: &Arc<Journal>, id: u64) -> (Vec<StoryEvent>, Follower) {
        let events = lock(&self.events);
        let story = events.iter().filter(|entry| entry.id == id).map(Entry::view).collect();
        *lock(&self.followed).entry(id).or_default() += 1;
        self.followers.fetch_add(1, Ordering::Relaxed);
        let receiver = self.sender.subscribe();
        (story, Follower { journal: self.clone(), id, receiver, missed: false })
    }
}

impl Gone {
    fn view(&self, ping_interval: Duration) -> ConnectionView {
        let ended = &self.ended;
        ConnectionView {
            state: "closed".into(),
            closed: Some(Timestamp(self.at)),
            cause: Some(ended.cause.name().into()),
            code: Some(ended.code()),
            heartbeat_rtt_ms: ended.round_trip.map(|time| time.as_secs_f64() * 1e3),
            last_pong: ended.last_pong.map(Timestamp),
            message_queue_size: ended.queued as u64,
            tcp: ended.tcp.map(|tcp| tcp.view()),
            ..self.origin.view(&ended.totals, ping_interval)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of the content is complete.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn push<T>(queue: &mut VecDeque<T>, most: usize, item: T) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Receiver of one connection's events, as they happen.
pub struct Follower {
    journal: Arc<Journal>,
    id: u64,
    receiver: broadcast::Receiver<Entry>,
    /// `true` if events were missed, perhaps the last one.
    missed: bool,
}

impl Follower {
    /// Return the next event; `None` when there will be none.
    pub async fn next(&mut self) -> Option<StoryEvent> {
        loop {
            if self.missed && self.receiver.is_empty() && self.journal.closed_one(self.id).is_some()
            {
                return None;
            }
            match self.receiver.recv().await {
                Ok(entry) if entry.id == self.id => return Some(entry.view()),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    self.missed = true;
                    return Some(StoryEvent {
                        time: Timestamp::now(),
                        connection_id: self.id,
                        event: "missed".into(),
                        what: format!("{count} events, of this and other connections"),
                    });
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.journal.followers.fetch_sub(1, Ordering::Relaxed);
        let mut followed = lock(&self.journal.followed);
        let left = followed.get_mut(&self.id).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            followed.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Instant};

    use prometheus::Registry;

    use super::*;
    use crate::{
        metrics::{Metrics, Regions},
        record::Totals,
    };

    fn ended_connection(id: u64) -> (Origin, Ended) {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
        let origin = Origin {
            id,
            peer,
            client: peer.ip().into(),
            identity: None,
            region: Regions::new(&metrics).intern(None, &metrics),
            protocol: None,
            started: Instant::now(),
            handshake_us: 0,
        };
        let ended = Ended {
            cause: Cause::PeerVanished,
            close: None,
            sent: None,
            totals: Totals::default(),
            queued: 0,
            round_trip: None,
            last_pong: None,
            tcp: None,
        };
        (origin, ended)
    }

    #[tokio::test]
    async fn details_are_kept_only_of_those_that_are_followed() {
        let journal = Arc::new(Journal::new(Duration::from_secs(25)));
        journal.record(7, Happened::State(State::Active));
        journal.detail(7, || Happened::PingSent);
        let (story, mut follower) = journal.follow(7);
        assert_eq!((story.len(), story[0].what.as_str()), (1, "active"));
        journal.detail(8, || Happened::PingSent);
        journal.record(8, Happened::State(State::Suspect));
        journal.detail(7, || Happened::Message(12));
        let event = follower.next().await.unwrap();
        assert_eq!((&*event.event, event.what.as_str()), ("message", "12 bytes"));
        drop(follower);
        assert!(lock(&journal.followed).is_empty());
        journal.detail(7, || Happened::PingSent);
        assert_eq!(journal.story(7).len(), 2);
    }

    #[tokio::test]
    async fn who_missed_the_end_is_told_that_there_is_no_more() {
        let journal = Arc::new(Journal::new(Duration::from_secs(25)));
        let (_, mut follower) = journal.follow(7);
        let (origin, ended) = ended_connection(7);
        journal.bury(&origin, &ended);
        for _ in 0..=LAG {
            journal.record(8, Happened::State(State::Suspect));
        }
        assert_eq!(follower.next().await.unwrap().event, "missed");
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn memory_is_bounded_and_a_slow_follower_is_told() {
        let journal = Arc::new(Journal::new(Duration::from_secs(25)));
        let (_, mut follower) = journal.follow(1);
        for _ in 0..EVENTS + 10 {
            journal.record(1, Happened::State(State::Suspect));
        }
        assert_eq!(journal.story(1).len(), EVENTS);
        assert_eq!(follower.next().await.unwrap().event, "missed");
        assert_eq!(follower.next().await.unwrap().event, "state");
    }
}
