//! Publications that wait for one connection: bounded, and woken for.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

/// Bytes that may wait where memory is short.
const WHEN_SHORT: usize = 16 * 1024;

/// What to do when a mailbox is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest go, and the client is told how many it missed.
    #[default]
    DropOldest,
    /// The connection is closed as one that reads too slowly.
    Close,
}

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub messages: usize,
    pub bytes: usize,
    pub when_full: WhenFull,
}

impl Bounds {
    /// Those of the command line.
    pub const DEFAULT: Bounds =
        Bounds { messages: 1024, bytes: 1 << 20, when_full: WhenFull::DropOldest };
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It waits, and so many older ones had to go for it.
    Queued { dropped: u64 },
    /// It does not fit, whatever goes.
    TooLarge,
    /// The connection is on its way out for being full.
    Closing,
}

/// What comes next for the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// So many publications are lost here.
    Missed(u64),
    Text(Bytes),
    /// Close: too much has waited.
    Overflow,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<Bytes>,
    bytes: usize,
    /// Lost before the first of `texts`.
    missed: u64,
    overflow: bool,
}

/// The mailbox of one connection.
pub struct Mailbox {
    bounds: Bounds,
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

impl Mailbox {
    pub fn new(bounds: Bounds) -> Mailbox {
        Mailbox { bounds, queue: Mutex::default(), waker: AtomicWaker::new() }
    }

    /// Wake this for what comes next.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Queue a publication. Takes no memory but a reference to it. Where memory is `short`, less may
    /// wait.
    pub fn deliver(&self, text: Bytes, short: bool) -> Delivery {
        let bytes = if short { self.bounds.bytes.min(WHEN_SHORT) } else { self.bounds.bytes };
        let delivery = self.queue().push(text, &Bounds { bytes, ..self.bounds });
        self.waker.wake();
        delivery
    }

    /// What comes next.
    pub fn next(&self) -> Option<Next> {
        let mut queue = self.queue();
        if queue.overflow {
            return Some(Next::Overflow);
        }
        if queue.missed > 0 {
            return Some(Next::Missed(std::mem::take(&mut queue.missed)));
        }
        let text = queue.texts.pop_front()?;
        queue.bytes -= text.len();
        if queue.texts.is_empty() {
            // An idle connection holds nothing.
            queue.texts = VecDeque::new();
        }
        Some(Next::Text(text))
    }

    /// Bytes that wait. Subscribers of one topic share them.
    pub fn waiting(&self) -> usize {
        self.queue().bytes
    }

    /// Bytes of memory that are this mailbox's own: its references to what waits.
    pub fn held(&self) -> usize {
        self.queue().texts.capacity() * size_of::<Bytes>()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Counts and texts change together, without a panic between them.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, text: Bytes, bounds: &Bounds) -> Delivery {
        if self.overflow {
            return Delivery::Closing;
        }
        let fits = |queue: &Queue| {
            queue.texts.len() < bounds.messages && queue.bytes + text.len() <= bounds.bytes
        };
        if !fits(self) && bounds.when_full == WhenFull::Close {
            *self = Queue { overflow: true, ..Queue::default() };
            return Delivery::Closing;
        }
        let mut dropped = 0;
        if text.len() > bounds.bytes || bounds.messages == 0 {
            // It is lost behind what waits; said before that, which is when the client learns of it.
            self.missed += 1;
            return Delivery::TooLarge;
        }
        while !fits(self) {
            let Some(oldest) = self.texts.pop_front() else { break };
            self.bytes -= oldest.len();
            dropped += 1;
        }
        self.missed += dropped;
        self.bytes += text.len();
        self.texts.push_back(text);
        Delivery::Queued { dropped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(when_full: WhenFull) -> Mailbox {
        Mailbox::new(Bounds { messages: 3, bytes: 10, when_full })
    }

    fn text(byte: u8, len: usize) -> Bytes {
        vec![byte; len].into()
    }

    #[test]
    fn the_oldest_go_and_their_number_is_told_in_their_place() {
        let mailbox = mailbox(WhenFull::DropOldest);
        for byte in b'a'..=b'c' {
            assert_eq!(mailbox.deliver(text(byte, 2), false), Delivery::Queued { dropped: 0 });
        }
        assert_eq!(mailbox.deliver(text(b'd', 2), false), Delivery::Queued { dropped: 1 });
        assert_eq!(mailbox.deliver(text(b'e', 8), false), Delivery::Queued { dropped: 2 });
        assert_eq!(mailbox.waiting(), 10);
        assert_eq!(mailbox.next(), Some(Next::Missed(3)));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'd', 2))));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'e', 8))));
        assert_eq!((mailbox.next(), mailbox.waiting()), (None, 0));
    }

    #[test]
    fn what_never_fits_takes_nothing_with_it() {
        let mailbox = mailbox(WhenFull::DropOldest);
        mailbox.deliver(text(b'a', 2), false);
        assert_eq!(mailbox.deliver(text(b'b', 11), false), Delivery::TooLarge);
        assert_eq!(mailbox.next(), Some(Next::Missed(1)));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'a', 2))));
    }

    #[test]
    fn or_the_connection_goes() {
        let mailbox = mailbox(WhenFull::Close);
        for _ in 0..3 {
            mailbox.deliver(text(b'a', 1), false);
        }
        assert_eq!(mailbox.deliver(text(b'b', 1), false), Delivery::Closing);
        assert_eq!((mailbox.next(), mailbox.waiting()), (Some(Next::Overflow), 0));
        assert_eq!(mailbox.deliver(text(b'c', 1), false), Delivery::Closing);
    }
}
