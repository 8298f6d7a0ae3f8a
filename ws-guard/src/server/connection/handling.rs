//! What becomes of what a peer sent.

use std::time::Instant;

use ws_guard_common::window::Rate;

use super::{Connection, Phase};
use crate::{
    server::{
        cause::Cause,
        coding::Opened,
        handler::{Handler, Replies},
        io::Stream,
        journal::Happened,
        outbox::Payload,
        protocol::{Chunk, Message, ProtocolError},
    },
    telemetry::spans::Spans,
};

impl<I: Stream> Connection<I> {
    pub(super) fn message(&mut self, message: Message, now: Instant) {
        let number = self.totals.messages_in + 1;
        self.tell_message(number, message.payload.len());
        if self.phase != Phase::Open {
            self.totals.messages_in += 1;
            return;
        }
        match self.open(message) {
            Ok(Opened::Message(message)) => {
                self.totals.messages_in += 1;
                self.with_handler(|handler, replies| handler.message(message, replies));
            }
            Ok(Opened::Answer(answer)) => self.outbox.message(answer, Payload::Own, None),
            Err(error) => self.end(Cause::Protocol(error), now),
        }
    }

    pub(super) fn chunk(&mut self, chunk: Chunk) {
        if chunk.last {
            self.totals.messages_in += 1;
            self.tell_message(self.totals.messages_in, chunk.payload.len());
        }
        if self.phase == Phase::Open {
            self.with_handler(|handler, replies| handler.chunk(chunk, replies));
        }
    }

    /// What a message means, by what the subprotocol does to messages.
    fn open(&mut self, message: Message) -> Result<Opened, ProtocolError> {
        match &mut self.coding {
            None => Ok(Opened::Message(message)),
            Some(coding) => coding.open(message, self.shard.service.config.limits.message),
        }
    }

    pub(super) fn ping(&mut self, payload: &[u8], now: Instant) {
        self.totals.pings_in += 1;
        if self.phase != Phase::Open {
            return;
        }
        let charged = self.charge_ping();
        self.detail(|| Happened::Ping(charged));
        if !charged {
            self.totals.pings_ignored += 1;
            return self.shard.service.metrics.pings_over_limit.inc();
        }
        if self.caught_up && self.outbox.is_empty() {
            let arrived = self.io.since_arrival().and_then(|ago| Instant::now().checked_sub(ago));
            self.answering = arrived;
        }
        let service = &self.shard.service;
        self.heartbeat.owes_pong(now, &service.config.heartbeat);
        if self.outbox.pong(payload) {
            service.metrics.pings_passed_over.inc();
        } else {
            service.metrics.pings_answered.inc();
        }
    }

    /// Whether a ping keeps to the limits of its source and its connection: to that of its source, or
    /// to the connection's share of it.
    fn charge_ping(&mut self) -> bool {
        let pings = &self.shard.service.config.pings;
        // As the guard: a proxy's limits are not those of a client that nobody knows, which has a share
        // and, unless there are none, no limit for itself.
        let alone = self.ticket.is_alone();
        let rates = if alone { pings.rates_of_all() } else { pings.rates(self.ticket.source()) };
        let limited = rates.source.limit > 0 && rates.share > 0;
        let by_source = self.ticket.charge_ping(rates.source) && !(alone && limited);
        if rates.connection.limit == 0 && (rates.share == 0 || rates.source.limit == 0) {
            return by_source;
        }
        let now_ms = self.ticket.clock_ms();
        let window = self.pings.get_or_insert_default();
        // Both limits have the same window.
        let window_ms = rates.source.window_ms.max(rates.connection.window_ms);
        let share = Rate { limit: rates.share, window_ms, shift: 0 };
        let by_share = rates.share > 0 && window.has_room(now_ms, share);
        let by_connection = window.charge(now_ms, Rate { window_ms, ..rates.connection }, 1) == 1;
        (by_source || by_share) && by_connection
    }

    /// Let the handler work, and tell what it did.
    fn with_handler<T>(&mut self, work: impl FnOnce(&mut dyn Handler, &mut Replies<'_>) -> T) -> T {
        let mut replies = Replies {
            outbox: &mut self.outbox,
            deflater: self.deflater.as_mut(),
            coding: self.coding.as_deref_mut(),
            totals: &mut self.totals,
            happened: None,
        };
        let done = work(&mut *self.handler, &mut replies);
        if let Some(happened) = replies.happened {
            self.detail(|| happened);
        }
        done
    }

    /// Send what no message asked for, as far as there is room; whether there was any.
    pub(super) fn deliver(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while self.phase == Phase::Open && !self.is_full() {
            match self.with_handler(|handler, replies| handler.deliver(replies)) {
                Ok(true) => worked = true,
                Ok(false) => break,
                Err(_overflow) => {
                    self.end(Cause::SlowReader, now);
                    return true;
                }
            }
        }
        worked
    }

    /// Tell of a message with this number, to those who want to know.
    fn tell_message(&self, number: u64, bytes: usize) {
        self.detail(|| Happened::Message(bytes));
        if let Some(spans) = &self.shard.service.config.spans
            && Spans::wants_message(number)
        {
            let queue = self.outbox.waiting() + self.handler.waiting();
            spans.message(&self.origin, self.shard.ping_interval(), bytes, queue);
        }
    }
}
