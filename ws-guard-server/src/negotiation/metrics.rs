//! Connections and their ends by protocol, which is what a rollout is judged by.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::NONE;
use crate::{cause::Cause, record::Origin};

/// Counters by the protocol that was agreed. Its names come from the configuration, never from
/// clients.
#[derive(Clone, Debug)]
pub struct ByProtocol {
    live: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    errors: IntCounterVec,
}

impl ByProtocol {
    /// Make the metrics, and register them.
    pub fn new(registry: &Registry) -> prometheus::Result<ByProtocol> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<_> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let help = "Live connections by the subprotocol that was agreed.";
        let live = Opts::new("wsguard_server_protocol_connections", help);
        let live = IntGaugeVec::new(live, &["protocol"])?;
        registry.register(Box::new(live.clone()))?;
        Ok(ByProtocol {
            live,
            opened: counters(
                "wsguard_server_protocol_opened_total",
                "Connections whose handshake was done, by the subprotocol that was agreed.",
                &["protocol"],
            )?,
            closed: counters(
                "wsguard_server_protocol_closed_total",
                "Connections that ended, by subprotocol and by what ended them.",
                &["protocol", "cause"],
            )?,
            errors: counters(
                "wsguard_server_protocol_failed_total",
                "Connections that neither the client's close frame nor the server's end or load ended, by subprotocol.",
                &["protocol"],
            )?,
        })
    }

    pub fn opened(&self, origin: &Origin) {
        let labels = [label(origin)];
        self.live.with_label_values(&labels).inc();
        self.opened.with_label_values(&labels).inc();
        // There with 0, so that a share can be worked out before the first one.
        self.errors.with_label_values(&labels);
    }

    pub fn closed(&self, origin: &Origin, cause: Cause) {
        let protocol = label(origin);
        self.live.with_label_values(&[protocol]).dec();
        self.closed.with_label_values(&[protocol, cause.name()]).inc();
        if !matches!(cause, Cause::PeerClosed | Cause::Shed | Cause::Shutdown) {
            self.errors.with_label_values(&[protocol]).inc();
        }
    }
}

fn label(origin: &Origin) -> &str {
    origin.protocol.as_deref().unwrap_or(NONE)
}
