//! End of a connection.

use std::{task::Poll, time::Instant};

use super::{Connection, Phase};
use crate::{
    cause::Cause,
    io::Stream,
    journal::Happened,
    protocol::{Close, code},
    record::{Ended, wall},
};

impl<I: Stream> Connection<I> {
    /// Process the peer's close frame: answer it unless an answer (RFC 6455, 7.1.1).
    pub(super) fn peer_closes(&mut self, close: Option<Close>, now: Instant) {
        if self.phase == Phase::Open {
            self.cause.get_or_insert(Cause::PeerClosed);
            let code = close.as_ref().map_or(code::NO_STATUS, |close| close.code);
            self.send_close(code, "");
        }
        let none = || Close { code: code::NO_STATUS, reason: String::new() };
        self.close = Some(Box::new(close.unwrap_or_else(none)));
        self.phase = Phase::Ending;
        self.bound_closing(now);
    }

    fn send_close(&mut self, code: u16, reason: &str) {
        self.outbox.close(code, reason);
        self.sent_close = Some(code);
    }

    /// Close from this side, and wait for the peer to agree.
    pub(super) fn begin_close(&mut self, cause: Cause, now: Instant) {
        if self.phase == Phase::Open {
            self.cause.get_or_insert(cause);
            let spread = self.shard.service.config.shutdown_spread;
            self.send_close(cause.close_code(), &cause.told(spread));
            self.shard.service.journal.record(self.origin.id, Happened::Closing(cause));
            self.phase = Phase::Closing;
            self.bound_closing(now);
        }
    }

    /// Close from this side for a cause after which the peer's frames are worthless.
    pub(super) fn end(&mut self, cause: Cause, now: Instant) {
        self.begin_close(cause, now);
        self.cause.get_or_insert(cause);
        self.input.clear();
        self.decoder.abandon();
        self.opening = None;
        self.phase = Phase::Ending;
    }

    fn bound_closing(&mut self, now: Instant) {
        self.close_by.get_or_insert(now + self.shard.service.config.close_timeout);
    }

    /// End without waiting for the peer, and return whether nothing is left to try.
    pub(super) fn give_up(&mut self, cause: Cause, now: Instant) -> bool {
        // A close frame would not get past bytes that the socket does not accept either.
        let hopeless = cause == Cause::SlowReader || !self.outbox.is_empty();
        if hopeless {
            self.cause.get_or_insert(cause);
        } else {
            self.end(cause, now);
        }
        hopeless
    }

    /// Process the end of the peer's TCP stream.
    pub(super) fn vanished(&mut self) -> Poll<()> {
        self.cause.get_or_insert(Cause::PeerVanished);
        Poll::Ready(())
    }

    pub(super) fn ended(&mut self) -> Ended {
        Ended {
            cause: self.cause.unwrap_or(Cause::PeerVanished),
            close: self.close.take().map(|close| *close),
            // It is the last frame to be written.
            sent: self.sent_close.filter(|_| self.outbox.is_empty()),
            totals: self.totals,
            queued: self.outbox.waiting() + self.handler.waiting(),
            round_trip: self.heartbeat.round_trip(),
            last_pong: self.heartbeat.last_pong().map(|at| wall(at).0),
            tcp: self.show_path(),
        }
    }
}
