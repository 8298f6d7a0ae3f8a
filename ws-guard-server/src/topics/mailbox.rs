//! Publications that wait for one connection: bounded, and woken for.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::log::{Entry, Position};

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
    /// It waits; number of older ones dropped for it.
    Queued { dropped: u64 },
    /// It does not fit, whatever goes.
    TooLarge,
    /// The connection is on its way out for being full.
    Closing,
}

/// What comes next for the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// An answer to a request, or something about subscriptions.
    Answer(Answer),
    /// So many publications are lost here.
    Missed(u64),
    Text(Bytes),
    /// Close: too much has waited.
    Overflow,
}

/// An answer that may come from another thread. It goes ahead of publications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub text: Bytes,
    /// Mailboxes that it took work to reach.
    pub reached: usize,
    /// It ends the wait that [`Mailbox::expect`] began.
    pub expected: bool,
}

impl Answer {
    /// Something that no request waits for.
    pub fn unasked(text: Bytes) -> Answer {
        Answer { text, reached: 0, expected: false }
    }
}

/// Requests whose answers may be under way.
const EXPECTED: usize = 256;

#[derive(Default)]
struct Queue {
    answers: VecDeque<Answer>,
    /// Answers under way.
    expected: usize,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Lost before the first of `entries`.
    missed: u64,
    overflow: bool,
    /// Nothing is taken yet.
    paused: bool,
}

/// A mailbox from which nothing is taken until this is dropped.
pub struct Pause<'a>(&'a Mailbox);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.queue().paused = false;
        self.0.waker.wake();
    }
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
    pub fn deliver(&self, entry: Arc<Entry>, short: bool) -> Delivery {
        let delivery = self.queue().push(entry, &self.bounds_when(short));
        self.waker.wake();
        delivery
    }

    fn bounds_when(&self, short: bool) -> Bounds {
        let bytes = if short { self.bounds.bytes.min(WHEN_SHORT) } else { self.bounds.bytes };
        Bounds { bytes, ..self.bounds }
    }

    /// Queue what a subscriber has missed of a topic in place of what waits of it: all, or nothing
    /// where that is more than may wait. Returns whether it is queued.
    pub fn replay<'a>(
        &self,
        topic: &str,
        missed: impl Iterator<Item = &'a Arc<Entry>>,
        short: bool,
    ) -> bool {
        let bounds = self.bounds_when(short);
        let mut queue = self.queue();
        queue.discard(topic);
        let (len, bytes) = (queue.entries.len(), queue.bytes);
        for entry in missed {
            let fits = queue.entries.len() < bounds.messages
                && queue.bytes + entry.text.len() <= bounds.bytes;
            if !fits || queue.overflow {
                queue.entries.truncate(len);
                queue.bytes = bytes;
                return false;
            }
            queue.bytes += entry.text.len();
            queue.entries.push_back(entry.clone());
        }
        drop(queue);
        self.waker.wake();
        true
    }

    /// Let the connection take nothing until all of an answer is here: what is replayed before the word
    /// that it will be would be of no subscription.
    pub fn pause(&self) -> Pause<'_> {
        self.queue().paused = true;
        Pause(self)
    }

    /// Drop what waits of a topic.
    pub fn discard(&self, topic: &str) {
        self.queue().discard(topic);
    }

    /// Where the first that waits of a topic is.
    pub fn first_of(&self, topic: &str) -> Option<Position> {
        let queue = self.queue();
        queue.entries.iter().find(|entry| *entry.topic == *topic).and_then(|entry| entry.position)
    }

    /// An answer will come; false where too many are under way.
    pub fn expect(&self) -> bool {
        let mut queue = self.queue();
        let room = queue.expected < EXPECTED;
        queue.expected += usize::from(room);
        room
    }

    /// It is given otherwise.
    pub fn forgo(&self) {
        let mut queue = self.queue();
        queue.expected = queue.expected.saturating_sub(1);
    }

    /// Queue an answer.
    pub fn answer(&self, answer: Answer) {
        self.queue().answers.push_back(answer);
        self.waker.wake();
    }

    /// What comes next.
    pub fn next(&self) -> Option<Next> {
        let mut queue = self.queue();
        if queue.paused {
            return None;
        }
        if queue.overflow {
            return Some(Next::Overflow);
        }
        if let Some(answer) = queue.take_answer() {
            return Some(Next::Answer(answer));
        }
        if queue.missed > 0 {
            return Some(Next::Missed(std::mem::take(&mut queue.missed)));
        }
        let entry = queue.entries.pop_front()?;
        queue.bytes -= entry.text.len();
        if queue.entries.is_empty() {
            // An idle connection holds nothing.
            queue.entries = VecDeque::new();
        }
        Some(Next::Text(entry.text.clone()))
    }

    /// The next answer, if one is there.
    pub fn next_answer(&self) -> Option<Answer> {
        self.queue().take_answer()
    }

    /// Bytes that wait. Subscribers of one topic share them.
    pub fn waiting(&self) -> usize {
        self.queue().bytes
    }

    /// Bytes of memory that are this mailbox's own: its references to what waits.
    pub fn held(&self) -> usize {
        let queue = self.queue();
        let answers = queue.answers.iter().map(|answer| answer.text.len()).sum::<usize>();
        queue.entries.capacity() * size_of::<Arc<Entry>>()
            + queue.answers.capacity() * size_of::<Answer>()
            + answers
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Counts and texts change together, without a panic between them.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take_answer(&mut self) -> Option<Answer> {
        let answer = self.answers.pop_front()?;
        self.expected -= usize::from(answer.expected);
        if self.answers.is_empty() {
            self.answers = VecDeque::new();
        }
        Some(answer)
    }

    fn discard(&mut self, topic: &str) {
        let mut freed = 0;
        self.entries.retain(|entry| {
            let stays = *entry.topic != *topic;
            freed += if stays { 0 } else { entry.text.len() };
            stays
        });
        self.bytes -= freed;
    }

    fn push(&mut self, entry: Arc<Entry>, bounds: &Bounds) -> Delivery {
        if self.overflow {
            return Delivery::Closing;
        }
        let fits = |queue: &Queue| {
            queue.entries.len() < bounds.messages && queue.bytes + entry.text.len() <= bounds.bytes
        };
        if !fits(self) && bounds.when_full == WhenFull::Close {
            *self = Queue { overflow: true, expected: self.expected, ..Queue::default() };
            return Delivery::Closing;
        }
        let mut dropped = 0;
        if entry.text.len() > bounds.bytes || bounds.messages == 0 {
            // It is lost behind what waits; said before that, which is when the client learns of it.
            self.missed += 1;
            return Delivery::TooLarge;
        }
        while !fits(self) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.text.len();
            dropped += 1;
        }
        self.missed += dropped;
        self.bytes += entry.text.len();
        self.entries.push_back(entry);
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

    fn entry(byte: u8, len: usize) -> Arc<Entry> {
        let (topic, text) = ("t".into(), text(byte, len));
        Arc::new(Entry { topic, position: None, text, at: 0, key: None })
    }

    #[test]
    fn the_oldest_go_and_their_number_is_told_in_their_place() {
        let mailbox = mailbox(WhenFull::DropOldest);
        for byte in b'a'..=b'c' {
            assert_eq!(mailbox.deliver(entry(byte, 2), false), Delivery::Queued { dropped: 0 });
        }
        assert_eq!(mailbox.deliver(entry(b'd', 2), false), Delivery::Queued { dropped: 1 });
        assert_eq!(mailbox.deliver(entry(b'e', 8), false), Delivery::Queued { dropped: 2 });
        assert_eq!(mailbox.waiting(), 10);
        assert_eq!(mailbox.next(), Some(Next::Missed(3)));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'd', 2))));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'e', 8))));
        assert_eq!((mailbox.next(), mailbox.waiting()), (None, 0));
    }

    #[test]
    fn what_never_fits_takes_nothing_with_it() {
        let mailbox = mailbox(WhenFull::DropOldest);
        mailbox.deliver(entry(b'a', 2), false);
        assert_eq!(mailbox.deliver(entry(b'b', 11), false), Delivery::TooLarge);
        assert_eq!(mailbox.next(), Some(Next::Missed(1)));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'a', 2))));
    }

    #[test]
    fn a_replay_takes_the_place_of_what_waits_or_does_not_happen() {
        let mailbox = mailbox(WhenFull::DropOldest);
        mailbox.deliver(entry(b'a', 2), false);
        let missed = [entry(b'b', 2), entry(b'c', 2)];
        assert!(mailbox.replay("t", missed.iter(), false));
        assert!(!mailbox.replay("u", missed.iter(), false), "four messages are too many");
        assert_eq!(mailbox.waiting(), 4);
        assert!(!mailbox.replay("t", [entry(b'd', 11)].iter(), false), "it is too large");
        assert_eq!((mailbox.next(), mailbox.waiting()), (None, 0));
    }

    #[test]
    fn answers_go_first_and_so_many_may_be_under_way() {
        let mailbox = mailbox(WhenFull::DropOldest);
        mailbox.deliver(entry(b'a', 2), false);
        assert!((0..EXPECTED).all(|_| mailbox.expect()) && !mailbox.expect());
        let answer = Answer { text: text(b'b', 1), reached: 0, expected: true };
        mailbox.answer(answer.clone());
        assert_eq!(mailbox.next(), Some(Next::Answer(answer)));
        assert!(mailbox.expect() && !mailbox.expect());
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'a', 2))));
    }

    #[test]
    fn nothing_is_taken_during_a_pause() {
        let mailbox = mailbox(WhenFull::DropOldest);
        let pause = mailbox.pause();
        assert!(mailbox.replay("t", [entry(b'a', 2)].iter(), false));
        assert_eq!(mailbox.next(), None);
        let answer = Answer::unasked(text(b'b', 1));
        mailbox.answer(answer.clone());
        assert_eq!(mailbox.next(), None);
        drop(pause);
        assert_eq!(mailbox.next(), Some(Next::Answer(answer)));
        assert_eq!(mailbox.next(), Some(Next::Text(text(b'a', 2))));
    }

    #[test]
    fn or_the_connection_goes() {
        let mailbox = mailbox(WhenFull::Close);
        for _ in 0..3 {
            mailbox.deliver(entry(b'a', 1), false);
        }
        assert_eq!(mailbox.deliver(entry(b'b', 1), false), Delivery::Closing);
        assert_eq!((mailbox.next(), mailbox.waiting()), (Some(Next::Overflow), 0));
        assert_eq!(mailbox.deliver(entry(b'c', 1), false), Delivery::Closing);
    }
}
