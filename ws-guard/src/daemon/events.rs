//! The latest events, and their followers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use crate::domain::{clock::Timestamp, event::EventView};

/// Events kept for later requests.
const KEPT: usize = 1_000;
/// Events that a follower may lag behind before it loses some.
const LAG: usize = 1_024;

/// Keeps the latest events and hands them to followers. Cheap to clone.
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
    /// Events that followers lost because they read too slowly.
    missed: u64,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog { inner: Arc::default(), sender: broadcast::channel(LAG).0 }
    }
}

impl EventLog {
    /// Log, keep and hand on.
    pub fn record(&self, mut event: EventView) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.seq += 1;
        event.seq = inner.seq;
        log(&event);
        let event = Arc::new(event);
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(event.clone());
        // Sent under the lock, so that a follower sees each event once. No listener is no error.
        let _ = self.sender.send(event);
    }

    /// The kept events after number `since`; a first one of kind `missed` says how many are gone.
    pub fn since(&self, since: u64) -> Vec<Arc<EventView>> {
        self.follow(since).0
    }

    /// The kept events after number `since`, and those to come.
    pub fn follow(&self, since: u64) -> (Vec<Arc<EventView>>, Follower) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events: Vec<_> =
            inner.kept.iter().filter(|event| event.seq > since).cloned().collect();
        let first = events.first().map_or(inner.seq + 1, |event| event.seq);
        let gone = first.saturating_sub(since.saturating_add(1));
        // A request without a start gets all events.
        if since > 0 && gone > 0 {
            events.insert(0, missed(gone));
        }
        (events, Follower { log: self.clone(), receiver: self.sender.subscribe() })
    }

    /// Events that followers lost because they read too slowly.
    pub fn missed(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).missed
    }
}

/// Receives events as they come.
pub struct Follower {
    log: EventLog,
    receiver: broadcast::Receiver<Arc<EventView>>,
}

impl Follower {
    /// The next event; `None` when there will be none.
    pub async fn next(&mut self) -> Option<Arc<EventView>> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                let mut inner = self.log.inner.lock().unwrap_or_else(PoisonError::into_inner);
                inner.missed += count;
                Some(missed(count))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

fn missed(count: u64) -> Arc<EventView> {
    let bare = EventView::bare("missed", Timestamp::now());
    Arc::new(EventView { count: Some(count), ..bare })
}

/// What an operator should look at is a warning, the coming and going of connections is not.
fn log(event: &EventView) {
    let (kind, seq) = (event.kind.as_ref(), event.seq);
    match kind {
        "flow_opened" | "flow_closed" => tracing::debug!(kind, seq, "{event}"),
        "throttled" | "banned" | "table_full" | "unsynced" | "violation" | "proxy_suspected" => {
            tracing::warn!(kind, seq, "{event}");
        }
        "config_error" => tracing::error!(kind, seq, "configuration {event}"),
        _ => tracing::info!(kind, seq, "{event}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seqs(events: &[Arc<EventView>]) -> Vec<u64> {
        events.iter().map(|event| event.seq).collect()
    }

    #[tokio::test]
    async fn followers_get_what_was_and_what_comes_once_each() {
        let log = EventLog::default();
        log.record(EventView::message("policy", "a"));
        log.record(EventView::message("policy", "b"));
        let (old, mut follower) = log.follow(1);
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
        let events = log.since(3);
        assert_eq!((events[0].kind.as_ref(), events[0].count), ("missed", Some(7)));
        assert_eq!(events.len(), KEPT + 1);
        assert_eq!(log.since(0).len(), KEPT);
        assert!(log.since(u64::MAX).is_empty());
    }

    #[tokio::test]
    async fn slow_followers_are_told_what_they_lost() {
        let log = EventLog::default();
        let (_, mut follower) = log.follow(0);
        for _ in 0..LAG + 5 {
            log.record(EventView::message("policy", "x"));
        }
        let first = follower.next().await.unwrap();
        assert_eq!((first.kind.as_ref(), first.count), ("missed", Some(5)));
        assert_eq!(log.missed(), 5);
        assert_eq!(follower.next().await.unwrap().seq, 6);
    }
}
