//! Work that takes longer than a turn, and is continued in the next one.

use std::{task::Context, time::Instant};

use super::{Connection, Phase};
use crate::{
    io::Stream,
    outbox::Treatment,
    turn::{TURN, Turn},
};

impl<I: Stream> Connection<I> {
    /// Check whether there is work to continue.
    pub(super) fn is_working(&self) -> bool {
        self.outbox.is_working() || self.opening.is_some() || self.decoder.is_working()
    }

    /// Return the number of bytes held for a message in decoding.
    pub(super) fn opening_held(&self) -> usize {
        self.opening.as_ref().map_or(0, |opening| opening.held())
    }

    /// Check whether it may continue now; otherwise its task is woken later.
    pub(super) fn has_place(&mut self, cx: &mut Context<'_>) -> bool {
        let place = self.place.get_or_insert_with(|| Box::new(self.shard.places.queue()));
        place.poll(cx).is_ready()
    }

    /// Check whether unsolicited messages may be sent now; large amounts need a place.
    /// They may be for all connections of the thread, and be sent by one.
    pub(super) fn may_deliver(&mut self, cx: &mut Context<'_>) -> bool {
        let open = self.phase == Phase::Open;
        if open && self.handler.waiting() > TURN && !self.is_full() {
            return self.has_place(cx);
        }
        self.place = None;
        open
    }

    /// Continue until done or the turn is over: output first, so that it does not grow.
    pub(super) fn work(&mut self, now: Instant, turn: &mut Turn) {
        if self.outbox.is_working() {
            let deflater = self.deflater.as_mut();
            let treatment = Treatment { deflater, coding: self.coding.as_deref_mut() };
            self.outbox.work(treatment, turn);
        } else if let Some(opening) = self.opening.take() {
            self.open(*opening, now, turn);
        } else {
            self.decode(now, turn);
        }
    }
}
