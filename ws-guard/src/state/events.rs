//! Latest events, and their followers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;
use ws_guard_server::telemetry::logs::Level;

use crate::domain::{
    clock::Timestamp,
    event::EventView,
    event_filter::{EventFilter, MISSED},
};

/// Events kept for later requests.
const KEPT: usize = 1_000;
/// Events that a follower may lag behind before it loses some.
const LAG: usize = 1_024;

/// Log of the latest events, with followers. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Mutex<Inner>>,
    sender: broadcast::Sender<Arc<EventView>>,
}

#[derive(Default)]
struct Inner {
    kept: VecDeque<Arc<EventView>>,
    /// Number of the latest event.
    seq: u64,
    /// Time of the latest event that is no longer kept.
    forgotten: Option<Timestamp>,
    /// Events that followers lost because they read too slowly.
    missed: u64,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog { inner: Arc::default(), sender: broadcast::channel(LAG).0 }
    }
}

impl EventLog {
    /// Log an event, keep it, and pass it to followers.
    pub fn record(&self, mut event: EventView) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.seq += 1;
        event.seq = inner.seq;
        log(&event);
        let event = Arc::new(event);
        if inner.kept.len() == KEPT {
            inner.forgotten = inner.kept.pop_front().map(|event| event.time);
        }
        inner.kept.push_back(event.clone());
        // Sent under the lock, so that a follower sees each event once. No listener is no error.
        let _ = self.sender.send(event);
    }

    /// Return the kept events after `since` that pass, and a follower of new ones.
    /// The first is of kind `missed` if further events after `since` are gone.
    pub fn follow(&self, since: u64, filter: EventFilter) -> (Vec<Arc<EventView>>, Follower) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |event: &&Arc<EventView>| event.seq > since && filter.passes(event);
        let lost = inner.lost(since, &filter).map(Arc::new);
        let events = lost.into_iter().chain(inner.kept.iter().filter(wanted).cloned()).collect();
        (events, Follower { log: self.clone(), receiver: self.sender.subscribe(), filter })
    }

    /// Return the number of events that followers lost because they read too slowly.
    pub fn missed(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).missed
    }
}

impl Inner {
    /// Return the notice for requested events that are gone.
    /// A request without a start asks for the kept ones only.
    fn lost(&self, since: u64, filter: &EventFilter) -> Option<EventView> {
        let first = self.kept.front().map_or(self.seq + 1, |event| event.seq);
        let gone = first.saturating_sub(since.saturating_add(1));
        if since > 0 && gone > 0 {
            return Some(missed(gone));
        }
        let (after, forgotten) = (filter.after?, self.forgotten?);
        (since == 0 && forgotten.0 >= after).then(|| {
            EventView::message(MISSED, format!("events until {forgotten} are no longer kept"))
        })
    }
}

/// Receiver of further events.
pub struct Follower {
    log: EventLog,
    receiver: broadcast::Receiver<Arc<EventView>>,
    filter: EventFilter,
}

impl Follower {
    /// Wait for the next event that passes; `None` when there will be none.
    pub async fn next(&mut self) -> Option<Arc<EventView>> {
        loop {
            match self.receiver.recv().await {
                Ok(event) if self.filter.passes(&event) => return Some(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    let mut inner = self.log.inner.lock().unwrap_or_else(PoisonError::into_inner);
                    inner.missed += count;
                    return Some(Arc::new(missed(count)));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

fn missed(count: u64) -> EventView {
    EventView { count: Some(count), ..EventView::bare(MISSED, Timestamp::now()) }
}

fn log(event: &EventView) {
    let (kind, seq) = (event.kind.as_ref(), event.seq);
    match level(event) {
        Level::Debug => tracing::debug!(kind, seq, "{event}"),
        Level::Info => tracing::info!(kind, seq, "{event}"),
        Level::Warn => tracing::warn!(kind, seq, "{event}"),
        Level::Error => tracing::error!(kind, seq, "configuration {event}"),
    }
}

/// Return the level: a warning if an operator should look; lower for connections.
pub fn level(event: &EventView) -> Level {
    match event.kind.as_ref() {
        "flow_opened" | "flow_closed" => Level::Debug,
        "throttled" | "banned" | "table_full" | "unsynced" | "violation" | "proxy_suspected" => {
            Level::Warn
        }
        "config_error" => Level::Error,
        _ => Level::Info,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn all() -> EventFilter {
        EventFilter::default()
    }

    fn seqs(events: &[Arc<EventView>]) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[tokio::test]
    async fn followers_get_what_was_and_what_comes_once_each() {
        let log = EventLog::default();
        log.record(EventView::message("policy", "a"));
        log.record(EventView::message("policy", "b"));
        let (old, mut follower) = log.follow(1, all());
        assert_eq!(seqs(&old), [2]);
        log.record(EventView::message("policy", "c"));
        assert_eq!(follower.next().await.unwrap().seq, 3);
    }

    #[test]
    fn who_asks_for_too_old_ones_is_told_how_many_are_gone() {
        let log = EventLog::default();
        for _ in 0..KEPT + 10 {
            log.record(EventView::message("policy", "x"));
        }
        let since = |since| log.follow(since, all()).0;
        let events = since(3);
        assert_eq!((events[0].kind.as_ref(), events[0].count), ("missed", Some(7)));
        assert_eq!(events.len(), KEPT + 1);
        assert_eq!(since(0).len(), KEPT);
        assert!(since(u64::MAX).is_empty());
        // By time: not how many, but that some are missing.
        let events = log.follow(0, all().within(Duration::from_secs(3_600))).0;
        assert_eq!((events[0].kind.as_ref(), events[0].count), ("missed", None));
        assert!(events[0].to_string().contains("no longer kept"), "{}", events[0]);
        assert_eq!(events.len(), KEPT + 1);
        let future =
            EventFilter { after: Some(SystemTime::now() + Duration::from_secs(60)), ..all() };
        assert!(log.follow(0, future).0.is_empty());
    }

    #[tokio::test]
    async fn followers_get_only_what_they_asked_for() {
        let log = EventLog::default();
        log.record(EventView::message("config", "old"));
        let (old, mut follower) = log.follow(0, EventFilter { kinds: vec!["policy"], ..all() });
        assert!(old.is_empty());
        log.record(EventView::message("config", "new"));
        log.record(EventView::message("policy", "new"));
        assert_eq!(follower.next().await.unwrap().seq, 3);
    }

    #[tokio::test]
    async fn slow_followers_are_told_what_they_lost() {
        let log = EventLog::default();
        let (_, mut follower) = log.follow(0, all());
        for _ in 0..LAG + 5 {
            log.record(EventView::message("policy", "x"));
        }
        let first = follower.next().await.unwrap();
        assert_eq!((first.kind.as_ref(), first.count), ("missed", Some(5)));
        assert_eq!(log.missed(), 5);
        assert_eq!(follower.next().await.unwrap().seq, 6);
    }
}
