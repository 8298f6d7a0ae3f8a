//! What a connection does under `--handler topic`.

use std::{task::Context, time::Instant};

use super::{Connection, Phase};
use crate::server::{
    cause::Cause,
    io::Stream,
    protocol::{Kind, Message},
};

impl<I> Connection<I> {
    /// Bytes of publications that wait behind the outbox.
    pub(super) fn undelivered(&self) -> usize {
        self.subscriber.as_ref().map_or(0, |subscriber| subscriber.mailbox().waiting())
    }

    pub(super) fn await_publications(&self, cx: &Context<'_>) {
        if let Some(subscriber) = &self.subscriber {
            subscriber.mailbox().register(cx.waker());
        }
    }
}

impl<I: Stream> Connection<I> {
    /// What goes back for a message.
    pub(super) fn answer(&mut self, message: Message) -> Message {
        let Some(subscriber) = &mut self.subscriber else { return message };
        let (payload, happened) = subscriber.request(&message);
        if let Some(happened) = happened {
            self.detail(|| happened);
        }
        Message { kind: Kind::Text, payload }
    }

    /// Take publications out of the mailbox, as far as there is room; whether there were any.
    pub(super) fn deliver(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while self.phase == Phase::Open && !self.is_full() {
            let Some(subscriber) = &self.subscriber else { break };
            match subscriber.next() {
                Ok(Some((message, happened))) => {
                    if let Some(happened) = happened {
                        self.detail(|| happened);
                    }
                    self.send(message);
                    worked = true;
                }
                Ok(None) => break,
                Err(_overflow) => {
                    self.end(Cause::SlowReader, now);
                    return true;
                }
            }
        }
        worked
    }
}
