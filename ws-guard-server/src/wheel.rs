//! Timers of all connections of a shard, in one wheel.
//!
//! A connection has one entry, for the earliest of its time-outs. Traffic only postpones
//! these, and does not touch the wheel: when the entry fires early, the connection checks,
//! finds nothing due, and waits again.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::Instant,
};

use slab::Slab;
use tokio_util::time::{DelayQueue, delay_queue};

use super::cause::Cause;

/// Signals that a connection finds when woken.
#[derive(Debug, Default)]
struct Slot {
    /// Number of the connection.
    id: u64,
    waker: Option<Waker>,
    timer: Option<(delay_queue::Key, Instant)>,
    signals: Signals,
    /// Time of the latest message, or of the connection's beginning.
    used: Option<Instant>,
}

/// Timers, and orders to close, of one shard's connections.
#[derive(Debug, Default)]
pub struct Wheel {
    slots: RefCell<Slab<Slot>>,
    timers: RefCell<DelayQueue<usize>>,
    /// Number of reports requested and not delivered.
    awaited: Cell<usize>,
}

/// Signals to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// `true` if the timer has fired.
    pub due: bool,
    /// Order to close, for this cause.
    pub order: Option<Cause>,
    /// Order to end at once: the time to close is over.
    pub abandon: bool,
    /// Request for a report.
    pub report: bool,
}

impl Wheel {
    /// Allocate a slot for a connection.
    pub fn enter(&self, id: u64) -> usize {
        self.slots.borrow_mut().insert(Slot { id, used: Some(Instant::now()), ..Slot::default() })
    }

    /// Return the slots of all connections, or of the one with this number.
    pub fn places(&self, id: Option<u64>) -> Vec<usize> {
        let slots = self.slots.borrow();
        let wanted = slots.iter().filter(|(_, slot)| id.is_none_or(|id| id == slot.id));
        wanted.map(|(place, _)| place).collect()
    }

    /// Request reports of connections; those that have ended do not answer.
    pub fn ask(&self, places: &[usize]) {
        let mut slots = self.slots.borrow_mut();
        for place in places {
            let Some(slot) = slots.get_mut(*place) else { continue };
            if !std::mem::replace(&mut slot.signals.report, true) {
                self.awaited.set(self.awaited.get() + 1);
            }
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Return the number of queried connections without a report that have not ended.
    pub fn awaited(&self) -> usize {
        self.awaited.get()
    }

    /// Release the slot.
    pub fn leave(&self, slot: usize) {
        let Some(slot) = self.slots.borrow_mut().try_remove(slot) else { return };
        if slot.signals.report {
            self.awaited.set(self.awaited.get() - 1);
        }
        if let Some((key, _)) = slot.timer {
            self.timers.borrow_mut().try_remove(&key);
        }
    }

    /// Record a message.
    pub fn touch(&self, slot: usize, now: Instant) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(slot)
            && slot.used.is_some()
        {
            slot.used = Some(now);
        }
    }

    /// Close at most `most` connections without a message since `before`.
    pub fn shed(&self, before: Instant, most: usize) {
        self.order(Cause::Shed, most, |used| used < before);
    }

    /// Order at most `most` connections to close, of those last used at such a time.
    fn order(&self, cause: Cause, most: usize, is_meant: impl Fn(Instant) -> bool) {
        let wakers: Vec<Waker> = {
            let mut slots = self.slots.borrow_mut();
            let meant = slots.iter_mut().filter(|(_, slot)| slot.used.is_some_and(&is_meant));
            let told = meant.take(most).filter_map(|(_, slot)| {
                // Once: one with this order is closing.
                slot.used = None;
                slot.signals.order = Some(cause);
                slot.waker.take()
            });
            told.collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Order some further connections to close.
    pub fn order_some(&self, cause: Cause, most: usize) {
        self.order(cause, most, |_| true);
    }

    /// Return the number of connections with a slot.
    pub fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Take the connection's signals, and register its task for more.
    pub fn signals(&self, slot: usize, cx: &Context<'_>) -> Signals {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(slot) else { return Signals::default() };
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        let signals = std::mem::take(&mut slot.signals);
        if signals.report {
            self.awaited.set(self.awaited.get() - 1);
        }
        signals
    }

    /// Fire at `deadline` at the latest.
    pub fn arm(&self, slot: usize, deadline: Instant) {
        let mut slots = self.slots.borrow_mut();
        let Some(place) = slots.get_mut(slot) else { return };
        let mut timers = self.timers.borrow_mut();
        match &mut place.timer {
            Some((_, armed)) if *armed <= deadline => {}
            Some((key, armed)) => {
                timers.reset_at(key, deadline.into());
                *armed = deadline;
            }
            none => *none = Some((timers.insert_at(slot, deadline.into()), deadline)),
        }
    }

    /// Order every connection to close.
    pub fn order_all(&self, cause: Cause) {
        self.signal_all(|signals| signals.order = Some(cause));
    }

    /// Order every connection to end at once.
    pub fn abandon_all(&self) {
        self.signal_all(|signals| signals.abandon = true);
    }

    fn signal_all(&self, signal: impl Fn(&mut Signals)) {
        let wakers: Vec<Waker> = {
            let mut slots = self.slots.borrow_mut();
            let told = slots.iter_mut().filter_map(|(_, slot)| {
                signal(&mut slot.signals);
                slot.waker.take()
            });
            told.collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Fire timers, for ever.
    pub async fn turn(&self) {
        poll_fn(|cx| {
            loop {
                let expired = self.timers.borrow_mut().poll_expired(cx);
                // An empty queue also registers the task to wake.
                let Poll::Ready(Some(expired)) = expired else { return Poll::<()>::Pending };
                self.fire(expired.into_inner());
            }
        })
        .await;
    }

    fn fire(&self, slot: usize) {
        let waker = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(slot) else { return };
            slot.timer = None;
            slot.signals.due = true;
            slot.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
