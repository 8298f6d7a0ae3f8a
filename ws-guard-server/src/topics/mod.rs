//! Publish and subscribe: what connections are for under `--handler topic`.
//!
//! A client's requests and what it is sent are in [`protocol`]. The [`bus`] carries publications; an
//! [`exchange`] knows the subscribers of this server, keeps a [`log`] of each topic whose [rule](rules)
//! wants a history, and puts publications into the [`mailbox`] of each subscriber, which
//! is bounded. A [`subscriber`] is a connection's share of all that, and [`resume`] what it can go on
//! with after its end.

pub mod bus;
pub mod exchange;
pub mod local_bus;
pub mod log;
pub mod mailbox;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod protocol;
pub mod redis;
pub mod resume;
pub mod rules;
pub mod subscriber;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use prometheus::Registry;

use self::{
    bus::{Bus, Promise, Publication, Stored},
    exchange::{Exchange, HistoryBounds},
    mailbox::Bounds,
    metrics::TopicMetrics,
    protocol::Topic,
    resume::ResumeKey,
    rules::{InForce, Ruled, Rules, RulesError},
};
use super::memory_budget::MemoryBudget;
use crate::server::StartError;

/// What topics are, and what they may cost.
#[derive(Clone, Debug)]
pub struct TopicLimits {
    /// Of each connection's mailbox.
    pub mailbox: Bounds,
    /// Topics that a connection may subscribe to.
    pub topics: usize,
    /// Which topics have a history or are queues.
    pub rules: Arc<InForce>,
    /// Of the histories of all topics together.
    pub history: HistoryBounds,
    /// Topics that each connection is subscribed to, with `{user_id}` in place of its user's name.
    pub auto_subscribe: Vec<String>,
    /// What signs resume tokens; without one, they are good for this process only.
    pub resume: Option<ResumeKey>,
    /// How topics are shared with other servers; without it, they end at this process.
    pub bus: Option<redis::Settings>,
}

impl Default for TopicLimits {
    /// Those of the command line.
    fn default() -> TopicLimits {
        TopicLimits {
            mailbox: Bounds::DEFAULT,
            topics: 64,
            rules: Arc::default(),
            history: HistoryBounds::DEFAULT,
            auto_subscribe: Vec::new(),
            resume: None,
            bus: None,
        }
    }
}

/// What all connections share.
pub struct Topics {
    limits: TopicLimits,
    exchange: Arc<Exchange>,
    bus: Arc<dyn Bus>,
    resume: ResumeKey,
    metrics: TopicMetrics,
}

impl Topics {
    /// Topics whose publications go over what `connect` makes, and which follow the rules in force.
    /// `resume` is for limits that name no key.
    pub fn new(
        limits: TopicLimits,
        resume: ResumeKey,
        registry: &Registry,
        held: MemoryBudget,
        connect: impl FnOnce(Arc<Exchange>) -> Result<Arc<dyn Bus>, StartError>,
    ) -> Result<Arc<Topics>, StartError> {
        let metrics = TopicMetrics::new(registry)?;
        let rules = limits.rules.clone();
        let exchange = Arc::new(Exchange::new(rules, limits.history, metrics.clone(), held));
        let resume = limits.resume.clone().unwrap_or(resume);
        let bus = connect(exchange.clone())?;
        let topics = Arc::new(Topics { limits, bus, exchange, resume, metrics });
        let told: Weak<dyn Ruled> = Arc::<Topics>::downgrade(&topics);
        topics.limits.rules.tell(told);
        Ok(topics)
    }

    /// Memory is short, or is no more: mailboxes take less, or what they may.
    pub fn set_short(&self, short: bool) {
        self.exchange.set_short(short);
    }

    /// Let go of history that is too old.
    pub fn sweep(&self) {
        self.exchange.sweep();
    }

    /// Publish for someone who waits.
    pub fn publish(&self, publication: Publication, promise: Promise<Stored>) {
        let published = self.metrics.published.clone();
        self.bus.publish(
            publication,
            Box::new(move |stored| {
                published.inc_by(u64::from(stored.is_ok()));
                promise(stored);
            }),
        );
    }

    /// Publish as an operator, or as the service behind the server.
    pub fn publish_data(
        &self,
        topic: &Topic,
        data: &serde_json::value::RawValue,
        key: Option<&str>,
        promise: Promise<Stored>,
    ) {
        let data = Bytes::copy_from_slice(data.get().as_bytes());
        // Apart from those of users, who have a name before the line break.
        let key = key.map(|key| format!("\n\n{key}").into());
        self.publish(Publication { topic: topic.name(), data, key }, promise);
    }
}

impl Ruled for Topics {
    fn check(&self, rules: &Rules) -> Result<(), RulesError> {
        if !self.bus.is_remote() && rules.0.iter().any(|rule| rule.queueing().is_some()) {
            return Err(RulesError::NoBus);
        }
        self.exchange.check_rules(rules)
    }

    fn changed(&self) {
        self.exchange.adopt_rules(&*self.bus);
    }
}
