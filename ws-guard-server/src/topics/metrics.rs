//! What topics count. No label is a topic's name: clients make those up.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::mailbox::Delivery;

/// Counters of all topics together.
#[derive(Clone)]
pub struct TopicMetrics {
    pub topics: IntGauge,
    pub subscriptions: IntGauge,
    pub published: IntCounter,
    queued: IntCounter,
    dropped: IntCounter,
    closing: IntCounter,
}

impl TopicMetrics {
    /// Make the metrics, and register them.
    pub fn new(registry: &Registry) -> prometheus::Result<TopicMetrics> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let published = IntCounter::new(
            "wsguard_server_publications_total",
            "Publications of this server's clients and operators.",
        )?;
        registry.register(Box::new(published.clone()))?;
        let deliveries = IntCounterVec::new(
            Opts::new(
                "wsguard_server_deliveries_total",
                "Publications for a subscriber: queued, dropped from its queue again or not fit for it, or refused because it is being closed.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(deliveries.clone()))?;
        Ok(TopicMetrics {
            topics: gauge("wsguard_server_topics", "Topics with subscribers.")?,
            subscriptions: gauge("wsguard_server_subscriptions", "Subscriptions to topics.")?,
            published,
            queued: deliveries.with_label_values(&["queued"]),
            dropped: deliveries.with_label_values(&["dropped"]),
            closing: deliveries.with_label_values(&["closing"]),
        })
    }

    pub(super) fn delivered(&self, delivery: Delivery) {
        match delivery {
            Delivery::Queued { dropped } => {
                self.queued.inc();
                self.dropped.inc_by(dropped);
            }
            Delivery::TooLarge => self.dropped.inc(),
            Delivery::Closing => self.closing.inc(),
        }
    }
}
