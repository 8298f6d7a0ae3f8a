//! Kernel statistics of all connections' TCP.

use prometheus::exponential_buckets;

use super::TracedHistogram;
use crate::{register::Register, tcp_info::TcpInfo};

/// Histograms of each connection, at most once a ping interval, and at its end.
#[derive(Clone, Debug)]
pub struct TcpMetrics {
    round_trip: TracedHistogram,
    retransmitted: TracedHistogram,
    unacknowledged: TracedHistogram,
}

impl TcpMetrics {
    pub(super) fn new(register: Register<'_>) -> prometheus::Result<TcpMetrics> {
        Ok(TcpMetrics {
            round_trip: TracedHistogram::new(
                register,
                "wsguard_server_tcp_rtt_seconds",
                "Smoothed round-trip times of TCP, of each connection, at most once a ping interval, and at its end.",
                exponential_buckets(0.000_1, 4.0, 9)?,
            )?,
            retransmitted: TracedHistogram::new(
                register,
                "wsguard_server_tcp_retransmitted_segments",
                "Segments that a connection's TCP sent again since it was last looked at; the sum is all of them.",
                vec![0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0],
            )?,
            unacknowledged: TracedHistogram::new(
                register,
                "wsguard_server_tcp_unacknowledged_segments",
                "Segments that clients had not acknowledged, looked at as often.",
                vec![0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0],
            )?,
        })
    }

    pub(super) fn all(&self) -> [&TracedHistogram; 3] {
        [&self.round_trip, &self.retransmitted, &self.unacknowledged]
    }

    /// Record an observation; `again` segments were retransmitted since the last one.
    pub fn observe(&self, connection_id: u64, info: &TcpInfo, again: u32) {
        self.round_trip.observe(connection_id, info.round_trip.as_secs_f64());
        self.retransmitted.observe(connection_id, again.into());
        self.unacknowledged.observe(connection_id, info.unacknowledged.into());
    }
}
