//! A connection and its handler.

use std::time::Instant;

use super::{Connection, Phase};
use crate::{
    server::{
        cause::Cause,
        handler::{Handler, Replies},
        io::Stream,
        journal::Happened,
    },
    telemetry::spans::Spans,
};

impl<I: Stream> Connection<I> {
    /// Let the handler work, and tell what it did.
    pub(super) fn with_handler<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Handler, &mut Replies<'_>) -> T,
    ) -> T {
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
    pub(super) fn tell_message(&self, number: u64, bytes: usize) {
        self.detail(|| Happened::Message(bytes));
        if let Some(spans) = &self.shard.service.config.spans
            && Spans::wants_message(number)
        {
            let queue = self.outbox.waiting() + self.handler.waiting();
            spans.message(&self.origin, self.shard.ping_interval(), bytes, queue);
        }
    }
}
