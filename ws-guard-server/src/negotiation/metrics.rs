//! Connections and their ends by protocol, for judging a rollout.

use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use super::NONE;
use crate::{cause::Cause, register::Register};

/// Counters by agreed protocol.
/// Its names come from the configuration, never from clients.
#[derive(Clone, Debug)]
pub struct ByProtocol {
    live: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    errors: IntCounterVec,
}

impl ByProtocol {
    /// Create and register the metrics.
    pub fn new(registry: &Registry) -> prometheus::Result<ByProtocol> {
        let register = Register::new(registry);
        Ok(ByProtocol {
            live: register.gauges(
                "wsguard_server_protocol_connections",
                "Live connections by the subprotocol that was agreed.",
                &["protocol"],
            )?,
            opened: register.counters(
                "wsguard_server_protocol_opened_total",
                "Connections whose handshake was done, by the subprotocol that was agreed.",
                &["protocol"],
            )?,
            closed: register.counters(
                "wsguard_server_protocol_closed_total",
                "Connections that ended, by subprotocol and by what ended them.",
                &["protocol", "cause"],
            )?,
            errors: register.counters(
                "wsguard_server_protocol_failed_total",
                "Connections that neither the client's close frame nor the server's end or load ended, by subprotocol.",
                &["protocol"],
            )?,
        })
    }

    /// Create the series of a protocol, so that shares are known before its first end.
    pub(crate) fn prepare(&self, protocol: &str) {
        self.live.with_label_values(&[protocol]);
        self.opened.with_label_values(&[protocol]);
        self.errors.with_label_values(&[protocol]);
        for cause in Cause::NAMES {
            self.closed.with_label_values(&[protocol, cause]);
        }
    }

    /// Count an opened connection. `protocol`: the agreed one, if any.
    pub fn opened(&self, protocol: Option<&str>) {
        let labels = [protocol.unwrap_or(NONE)];
        let opened = self.opened.with_label_values(&labels);
        if opened.get() == 0 {
            self.prepare(labels[0]);
        }
        opened.inc();
        self.live.with_label_values(&labels).inc();
    }

    /// Count a closed connection. `protocol`: the agreed one, if any.
    pub fn closed(&self, protocol: Option<&str>, cause: Cause) {
        let protocol = protocol.unwrap_or(NONE);
        self.live.with_label_values(&[protocol]).dec();
        self.closed.with_label_values(&[protocol, cause.name()]).inc();
        if !matches!(cause, Cause::PeerClosed | Cause::Shed | Cause::Shutdown) {
            self.errors.with_label_values(&[protocol]).inc();
        }
    }
}
