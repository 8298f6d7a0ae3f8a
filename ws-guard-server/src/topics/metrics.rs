//! What topics count. No label is a topic's name: clients make those up.

use prometheus::{IntCounter, IntGauge, Registry};

use super::mailbox::Delivery;
use crate::register::Register;

/// Counters of all topics together.
#[derive(Clone)]
pub struct TopicMetrics {
    pub topics: IntGauge,
    pub subscriptions: IntGauge,
    pub published: IntCounter,
    pub history_bytes: IntGauge,
    pub history_limit: IntGauge,
    pub resumed: IntCounter,
    pub not_resumed: IntCounter,
    queued: IntCounter,
    dropped: IntCounter,
    closing: IntCounter,
    recovered: IntCounter,
    unrecovered: IntCounter,
}

impl TopicMetrics {
    /// Make the metrics, and register them.
    pub fn new(registry: &Registry) -> prometheus::Result<TopicMetrics> {
        let register = Register::new(registry);
        let deliveries = register.counters(
            "wsguard_server_deliveries_total",
            "Publications for a subscriber: queued, dropped from its queue again or not fit for it, or refused because it is being closed.",
            &["result"],
        )?;
        let recoveries = register.counters(
            "wsguard_server_recoveries_total",
            "Subscriptions that went on at a position (yes), or could not and began anew (no).",
            &["recovered"],
        )?;
        let resumptions = register.counters(
            "wsguard_server_resumptions_total",
            "Connections that presented a resume token, by whether it was valid.",
            &["valid"],
        )?;
        Ok(TopicMetrics {
            topics: register
                .gauge("wsguard_server_topics", "Topics with subscribers or a history.")?,
            subscriptions: register
                .gauge("wsguard_server_subscriptions", "Subscriptions to topics.")?,
            published: register.counter(
                "wsguard_server_publications_total",
                "Publications of this server's clients and operators.",
            )?,
            history_bytes: register.gauge(
                "wsguard_server_history_bytes",
                "Memory of the histories of all topics, in bytes.",
            )?,
            history_limit: register.gauge(
                "wsguard_server_history_limit_bytes",
                "What they may take together: `--history-bytes`.",
            )?,
            resumed: resumptions.with_label_values(&["yes"]),
            not_resumed: resumptions.with_label_values(&["no"]),
            queued: deliveries.with_label_values(&["queued"]),
            dropped: deliveries.with_label_values(&["dropped"]),
            closing: deliveries.with_label_values(&["closing"]),
            recovered: recoveries.with_label_values(&["yes"]),
            unrecovered: recoveries.with_label_values(&["no"]),
        })
    }

    pub(super) fn resubscribed(&self, recovered: bool) {
        if recovered { &self.recovered } else { &self.unrecovered }.inc();
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
