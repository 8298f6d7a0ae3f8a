//! A connection and its handler.

use std::time::Instant;

use super::{Connection, Phase};
use crate::{
    server::{
        cause::Cause,
        coding::Opened,
        handler::{Handler, Replies},
        io::Stream,
        journal::Happened,
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
            Ok(Opened::Answer(answer)) => self.outbox.message(answer, None),
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
