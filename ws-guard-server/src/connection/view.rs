//! State of a live connection, for listings.

use super::{Connection, Phase};
use crate::{io::Stream, record::wall, view::ConnectionView};

impl<I: Stream> Connection<I> {
    pub(super) fn view(&self) -> ConnectionView {
        let state = match self.phase {
            Phase::Open => self.heartbeat.state().name(),
            Phase::Closing | Phase::Ending | Phase::Lingering => "closing",
        };
        let ping_interval = self.shard.service.config.heartbeat.ping_interval;
        ConnectionView {
            state: state.into(),
            cause: self.cause.map(|cause| cause.name().into()),
            last_pong: self.heartbeat.last_pong().map(wall),
            heartbeat_rtt_ms: self.heartbeat.round_trip().map(|time| time.as_secs_f64() * 1e3),
            message_queue_size: (self.outbox.waiting() + self.handler.waiting()) as u64,
            tcp: self.io.tcp().map(|tcp| tcp.view()),
            topics: self.handler.topics(),
            ..self.origin.view(&self.totals, ping_interval)
        }
    }
}
