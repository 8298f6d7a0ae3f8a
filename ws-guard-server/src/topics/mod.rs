//! Publish and subscribe: what connections are for under `--handler topic`.
//!
//! A client's requests and what it is sent are in [`protocol`]. The [`bus`] carries publications; an
//! [`exchange`] knows who of this server wants them, and puts them into the [`mailbox`] of each, which
//! is bounded. A [`subscriber`] is a connection's share of all that.

pub mod bus;
pub mod exchange;
pub mod mailbox;
pub mod metrics;
pub mod protocol;
pub mod subscriber;

use std::sync::Arc;

use prometheus::Registry;

use self::{
    bus::{Bus, BusError, Publication},
    exchange::Exchange,
    mailbox::Bounds,
    metrics::TopicMetrics,
    protocol::Topic,
};
use super::held::Held;

/// What topics may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicLimits {
    /// Of each connection's mailbox.
    pub mailbox: Bounds,
    /// Topics that a connection may subscribe to.
    pub topics: usize,
}

impl TopicLimits {
    /// Those of the command line.
    pub const DEFAULT: TopicLimits = TopicLimits { mailbox: Bounds::DEFAULT, topics: 64 };
}

/// What all connections share.
pub struct Topics {
    limits: TopicLimits,
    exchange: Arc<Exchange>,
    bus: Arc<dyn Bus>,
    metrics: TopicMetrics,
}

impl Topics {
    /// Topics whose publications go over what `connect` makes.
    pub fn new(
        limits: TopicLimits,
        registry: &Registry,
        held: Held,
        connect: impl FnOnce(Arc<Exchange>) -> Arc<dyn Bus>,
    ) -> prometheus::Result<Topics> {
        let metrics = TopicMetrics::new(registry)?;
        let exchange = Arc::new(Exchange::new(metrics.clone(), held));
        Ok(Topics { limits, bus: connect(exchange.clone()), exchange, metrics })
    }

    /// Memory is short, or is no more: mailboxes take less, or what they may.
    pub fn set_short(&self, short: bool) {
        self.exchange.set_short(short);
    }

    /// Publish; how many subscribers are known to get it.
    pub fn publish(
        &self,
        topic: &Topic,
        data: &serde_json::value::RawValue,
    ) -> Result<usize, BusError> {
        let text = protocol::message(topic, data);
        let reached = self.bus.publish(Publication { topic: topic.name(), text })?;
        self.metrics.published.inc();
        Ok(reached)
    }
}
