//! What takes longer than a turn, and goes on in the next one.

use std::{task::Context, time::Instant};

use super::{Connection, Phase};
use crate::{
    io::Stream,
    outbox::Treatment,
    turn::{TURN, Turn},
};

impl<I: Stream> Connection<I> {
    /// There is something to go on with.
    pub(super) fn is_working(&self) -> bool {
        self.outbox.is_working() || self.opening.is_some() || self.decoder.is_working()
    }

    /// Bytes of memory that are held for a message whose meaning is being found out.
    pub(super) fn opening_held(&self) -> usize {
        self.opening.as_ref().map_or(0, |opening| opening.held())
    }

    /// Whether it may go on now; otherwise this is woken when it may.
    pub(super) fn has_place(&mut self, cx: &mut Context<'_>) -> bool {
        let place = self.place.get_or_insert_with(|| Box::new(self.shard.places.queue()));
        place.poll(cx).is_ready()
    }

    /// Whether what no message asked for may go out now. Where that is much, only from a place: it may
    /// be for all connections of the thread, and be sent by one.
    pub(super) fn may_deliver(&mut self, cx: &mut Context<'_>) -> bool {
        let open = self.phase == Phase::Open;
        if open && self.handler.waiting() > TURN && !self.is_full() {
            return self.has_place(cx);
        }
        self.place = None;
        open
    }

    /// Go on until it is done or the turn over: what goes out first, so that no more comes to it.
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
