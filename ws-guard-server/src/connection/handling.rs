//! Processing of the peer's frames and messages.

use std::time::Instant;

use ws_guard_common::window::Rate;

use super::{Connection, Phase};
use crate::{
    cause::Cause,
    coding::{Opened, Opening},
    handler::{Handler, Replies},
    io::Stream,
    journal::Happened,
    outbox::{Payload, Treatment},
    protocol::{Chunk, Message},
    turn::Turn,
};

impl<I: Stream> Connection<I> {
    pub(super) fn message(&mut self, message: Message, now: Instant, turn: &mut Turn) {
        let number = self.totals.messages_in + 1;
        self.tell_message(number, message.payload.len());
        if self.phase != Phase::Open {
            self.totals.messages_in += 1;
            return;
        }
        if self.coding.is_some() {
            self.open(Opening::new(message), now, turn);
        } else {
            self.opened(message, turn);
        }
    }

    /// Continue decoding a message by the subprotocol's coding.
    pub(super) fn open(&mut self, mut opening: Opening, now: Instant, turn: &mut Turn) {
        let Some(coding) = self.coding.as_deref_mut() else { return };
        match opening.go_on(coding, self.shard.service.config.limits.message, turn) {
            Ok(None) => self.opening = Some(Box::new(opening)),
            Ok(Some(Opened::Message(message))) => self.opened(message, turn),
            Ok(Some(Opened::Answer(answer))) => {
                self.outbox.message(answer, Payload::Own, Treatment::default(), turn);
            }
            Err(error) => self.end(Cause::Protocol(error), now),
        }
    }

    /// Process a decoded message.
    fn opened(&mut self, message: Message, turn: &mut Turn) {
        self.totals.messages_in += 1;
        if self.phase == Phase::Open {
            self.with_handler(turn, |handler, replies| handler.message(message, replies));
        }
    }

    pub(super) fn chunk(&mut self, chunk: Chunk, turn: &mut Turn) {
        if chunk.last {
            self.totals.messages_in += 1;
            self.tell_message(self.totals.messages_in, chunk.payload.len());
        }
        if self.phase == Phase::Open {
            self.with_handler(turn, |handler, replies| handler.chunk(chunk, replies));
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
            let arrived =
                self.io.tcp().and_then(|tcp| Instant::now().checked_sub(tcp.since_arrival));
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

    /// Charge a ping, and check it against the limits.
    /// It keeps to that of its source, or to the connection's share of it.
    fn charge_ping(&mut self) -> bool {
        let pings = &self.shard.service.config.pings;
        // As in the guard: a proxy's limits are not those of an unknown client.
        let rates = match self.ticket.is_alone() {
            true => pings.rates_of_all(),
            false => pings.rates(self.ticket.source()),
        };
        let by_source = self.ticket.charge_ping(rates.source);
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

    /// Call the handler, and report what it did.
    fn with_handler<T>(
        &mut self,
        turn: &mut Turn,
        work: impl FnOnce(&mut dyn Handler, &mut Replies<'_>) -> T,
    ) -> T {
        let deflater = self.deflater.as_mut();
        let mut replies = Replies {
            outbox: &mut self.outbox,
            treatment: Treatment { deflater, coding: self.coding.as_deref_mut() },
            turn,
            totals: &mut self.totals,
            happened: None,
        };
        let done = work(&mut *self.handler, &mut replies);
        if let Some(happened) = replies.happened {
            self.detail(|| happened);
        }
        done
    }

    /// Send unsolicited messages while there is room; return whether there were any.
    pub(super) fn deliver(&mut self, now: Instant, turn: &mut Turn) -> bool {
        let mut worked = false;
        while self.phase == Phase::Open && !self.is_full() && !turn.is_over() {
            match self.with_handler(turn, |handler, replies| handler.deliver(replies)) {
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

    /// Report the message with this number to its listeners.
    fn tell_message(&self, number: u64, bytes: usize) {
        self.detail(|| Happened::Message(bytes));
        if let Some(trace) = &self.shard.service.config.trace
            && trace.wants_message(number)
        {
            let queue = self.outbox.waiting() + self.handler.waiting();
            trace.message(&self.origin, self.shard.ping_interval(), bytes, queue);
        }
    }
}
