//! Observation of the connection's TCP, for effects of its path to the client.

use std::time::Instant;

use super::Connection;
use crate::{io::Stream, tcp_info::TcpInfo};

/// Latest observation of TCP.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looked {
    /// Milliseconds after the connection began.
    at: u32,
    /// Number of segments retransmitted by then.
    retransmitted: u32,
}

impl<I: Stream> Connection<I> {
    /// Observe TCP, if a ping interval has passed since the last time.
    pub(super) fn look_at_path(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.origin.started).as_millis();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let interval = self.shard.ping_interval().as_millis();
        if u128::from(age.saturating_sub(self.looked.at)) >= interval {
            self.looked.at = age;
            self.show_path();
        }
    }

    /// Observe TCP, and update the metrics.
    pub(super) fn show_path(&mut self) -> Option<TcpInfo> {
        let info = self.io.tcp()?;
        let again = info.retransmitted.saturating_sub(self.looked.retransmitted);
        self.looked.retransmitted = info.retransmitted;
        self.shard.service.metrics.tcp.observe(self.origin.id, &info, again);
        Some(info)
    }
}
