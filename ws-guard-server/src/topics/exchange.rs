//! Who of this server's connections wants which topic.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    bus::{Bus, Publication},
    mailbox::{Delivery, Mailbox},
    metrics::TopicMetrics,
};
use crate::held::Held;

/// Mailboxes by the numbers of their connections.
type Subscribers = HashMap<u64, Arc<Mailbox>>;

/// Mailboxes by topic.
pub struct Exchange {
    topics: RwLock<HashMap<Arc<str>, Subscribers>>,
    /// Memory is short: mailboxes take less.
    short: AtomicBool,
    metrics: TopicMetrics,
    held: Held,
}

impl Exchange {
    pub(super) fn new(metrics: TopicMetrics, held: Held) -> Exchange {
        Exchange { topics: RwLock::default(), short: AtomicBool::new(false), metrics, held }
    }

    pub(super) fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Relaxed);
    }

    /// Put a publication into the mailbox of each subscriber; how many had room for it.
    pub fn deliver(&self, publication: &Publication) -> usize {
        let topics = self.read();
        let Some(subscribers) = topics.get(&publication.topic) else { return 0 };
        let short = self.short.load(Ordering::Relaxed);
        // All mailboxes refer to one text.
        let text = self.held.shared(publication.text.clone());
        let mut reached = 0;
        for mailbox in subscribers.values() {
            let delivery = mailbox.deliver(text.clone(), short);
            self.metrics.delivered(delivery);
            reached += usize::from(matches!(delivery, Delivery::Queued { .. }));
        }
        reached
    }

    /// Let connection `id` have a topic. The bus is told in the order in which it happens.
    pub(super) fn join(&self, topic: &Arc<str>, id: u64, mailbox: &Arc<Mailbox>, bus: &dyn Bus) {
        let mut topics = self.write();
        let subscribers = topics.entry(topic.clone()).or_default();
        if subscribers.is_empty() {
            bus.joined(topic);
        }
        if subscribers.insert(id, mailbox.clone()).is_none() {
            self.metrics.subscriptions.inc();
        }
        self.metrics.topics.set(topics.len() as i64);
    }

    /// Let it have it no more.
    pub(super) fn leave(&self, topic: &Arc<str>, id: u64, bus: &dyn Bus) {
        let mut topics = self.write();
        let Entry::Occupied(mut entry) = topics.entry(topic.clone()) else { return };
        if entry.get_mut().remove(&id).is_some() {
            self.metrics.subscriptions.dec();
        }
        if entry.get().is_empty() {
            entry.remove();
            bus.left(topic);
        }
        self.metrics.topics.set(topics.len() as i64);
    }

    // A panic while it was held left every subscriber where it was.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Subscribers>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Subscribers>> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }
}
