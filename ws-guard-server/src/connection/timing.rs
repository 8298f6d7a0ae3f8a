//! Time-outs of a connection.

use std::time::{Duration, Instant};

use super::{Connection, Phase};
use crate::{cause::Cause, heartbeat::Action, io::Stream, journal::Happened};

/// Bytes that extend the maximum duration of a frame by a second.
const FRAME_RATE: u64 = 1024;

/// Start of waiting for a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameTime {
    /// Number of complete frames before it.
    number: u64,
    since: Instant,
    /// Number of bytes received by then.
    bytes: u64,
}

impl<I: Stream> Connection<I> {
    /// Record whether a frame has begun and is incomplete.
    pub(super) fn time_frame(&mut self, now: Instant) {
        let number = self.decoder.frames();
        if self.input.is_empty() && !self.decoder.in_frame() {
            self.frame = None;
        } else if self.frame.is_none_or(|frame| frame.number != number) {
            self.frame = Some(FrameTime { number, since: now, bytes: self.totals.bytes_in });
        }
    }

    /// Handle expired time-outs, and return whether the connection is over.
    pub(super) fn on_time(&mut self, now: Instant) -> bool {
        if self.close_by.is_some_and(|by| by <= now) {
            return true;
        }
        for (deadline, cause) in [
            (self.stuck_until(), Cause::SlowReader),
            (self.frame_until(), Cause::SlowSender),
            (self.keys_until(), Cause::SlowSender),
        ] {
            if deadline.is_some_and(|deadline| deadline <= now) {
                return self.give_up(cause, now);
            }
        }
        if self.phase != Phase::Open {
            return false;
        }
        let times = &self.shard.service.config.heartbeat;
        if self.is_working() {
            // Nothing is read meanwhile, which is not the peer's fault.
            self.heartbeat.heard(now, times);
        }
        match self.heartbeat.poll(now, times) {
            None => false,
            Some(Action::Ping(payload)) => {
                self.outbox.ping(payload);
                self.shard.service.metrics.pings_sent.inc();
                self.detail(|| Happened::PingSent);
                false
            }
            Some(action) => self.give_up(action.into(), now),
        }
    }

    fn stuck_until(&self) -> Option<Instant> {
        self.stuck_since.map(|since| since + self.shard.service.config.write_timeout)
    }

    fn frame_until(&self) -> Option<Instant> {
        // Once it is ending, nothing more is read from it.
        let reads = matches!(self.phase, Phase::Open | Phase::Closing);
        let frame = self.frame.as_ref().filter(|_| reads)?;
        let came = Duration::from_secs((self.totals.bytes_in - frame.bytes) / FRAME_RATE);
        Some(frame.since + self.shard.service.config.frame_timeout + came)
    }

    /// Return the deadline for agreeing on keys, where messages are encrypted.
    fn keys_until(&self) -> Option<Instant> {
        self.coding.as_ref().filter(|_| self.phase == Phase::Open)?.deadline()
    }

    /// Arm the timer for the earliest time-out.
    pub(super) fn arm(&self) {
        let heartbeat = (self.phase == Phase::Open).then(|| self.heartbeat.deadline());
        let all =
            [heartbeat, self.close_by, self.stuck_until(), self.frame_until(), self.keys_until()];
        if let Some(deadline) = all.into_iter().flatten().min() {
            self.shard.wheel.arm(self.slot, deadline);
        }
    }
}
