//! Ordering of one direction's segments, in bounded memory.
//!
//! Bytes received before are left out, those past a hole wait for it to be filled. A hole is given
//! up when the receiver has acknowledged bytes past it, which it could not without having it, so
//! that only the capture lacks it, or when too much waits.

use std::{borrow::Cow, collections::VecDeque};

use ws_guard_common::seq::{after, before};

use crate::finding::Place;

/// Maximum number of bytes waiting behind a hole, overhead included.
const MOST_WAITING: usize = 1 << 20;
/// Overhead of a waiting segment in bytes.
const OVERHEAD: usize = 128;
/// Maximum distance of a segment; farther ones belong to another connection.
const FARTHEST: u32 = 1 << 30;

/// New bytes of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    pub place: Place,
    /// Sequence number of the segment's first payload byte.
    pub base: u32,
    /// Sequence number of the first new byte.
    pub seq: u32,
    /// New bytes, as far as they were captured.
    pub bytes: Cow<'a, [u8]>,
    /// Original number of new bytes.
    pub len: u32,
}

impl Chunk<'_> {
    /// Return the sequence number after the last byte.
    pub const fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }

    /// Return the number of bytes that the capture truncated.
    pub fn snapped(&self) -> u32 {
        self.len - self.bytes.len().min(self.len as usize) as u32
    }

    /// Check whether all of `other` is contained and captured.
    fn covers(&self, other: &Chunk<'_>) -> bool {
        let is_inside = !after(self.seq, other.seq) && !after(other.end(), self.end());
        is_inside && self.snapped() == 0
    }

    /// Take ownership of the bytes, to keep them.
    pub fn into_owned(self) -> Chunk<'static> {
        let Chunk { place, base, seq, bytes, len } = self;
        Chunk { place, base, seq, bytes: Cow::Owned(bytes.into_owned()), len }
    }

    /// Leave out the first `count` bytes.
    pub fn skip(self, count: u32) -> Self {
        let count = count.min(self.len);
        let known = self.bytes.len().min(count as usize);
        let bytes = match self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[known..]),
            Cow::Owned(mut bytes) => {
                bytes.drain(..known);
                Cow::Owned(bytes)
            }
        };
        Chunk { seq: self.seq.wrapping_add(count), bytes, len: self.len - count, ..self }
    }
}

/// Classification of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken<'a> {
    /// Segment whose new bytes come next. `again`: number of bytes received before.
    Next { chunk: Chunk<'a>, again: u32 },
    /// Segment received in full before.
    Again,
    /// Segment that waits behind a hole.
    Waits,
    /// Segment out of the stream's range, or a keep-alive.
    Ignored,
}

/// Progress that needs no new segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    Chunk(Chunk<'static>),
    /// Bytes from `seq` on that are not in the capture.
    Missing {
        place: Place,
        seq: u32,
        len: u32,
    },
}

/// Ordering of one direction.
#[derive(Debug, Default)]
pub struct Stream {
    /// Sequence number of the next byte, once one is known.
    next: Option<u32>,
    /// Start of the stream, by its SYN.
    begun: Option<u32>,
    /// Segments waiting behind a hole, in sequence, without overlaps at the front.
    waiting: VecDeque<Chunk<'static>>,
    waiting_bytes: usize,
    /// Latest acknowledgement of the receiver.
    acked: Option<u32>,
    /// `true` if bytes came past a hole after the receiver had acknowledged it.
    is_given_up: bool,
}

impl Stream {
    /// Begin the stream at `seq`, by its SYN.
    pub fn begin(&mut self, seq: u32) {
        let acked = self.acked;
        *self = Stream { next: Some(seq), begun: Some(seq), acked, ..Stream::default() };
    }

    /// Return the first byte's sequence number, where the SYN was captured.
    pub const fn begun(&self) -> Option<u32> {
        self.begun
    }

    /// Return the sequence number of the next byte.
    pub const fn next(&self) -> Option<u32> {
        self.next
    }

    /// Return the latest acknowledgement of the receiver.
    pub const fn acked(&self) -> Option<u32> {
        self.acked
    }

    /// Record that the receiver acknowledged the bytes before `ack`.
    pub fn acknowledge(&mut self, ack: u32) {
        if self.acked.is_none_or(|acked| after(ack, acked)) {
            self.acked = Some(ack);
        }
    }

    /// Process a segment.
    pub fn take<'a>(&mut self, chunk: Chunk<'a>) -> Taken<'a> {
        let next = *self.next.get_or_insert(chunk.seq);
        let ahead = chunk.seq.wrapping_sub(next);
        if chunk.len <= 1 && ahead == u32::MAX {
            // One byte before the next, or none: RFC 9293, 3.8.4.
            return Taken::Ignored;
        }
        if !after(chunk.end(), next) {
            return Taken::Again;
        }
        if after(chunk.seq, next) {
            if ahead > FARTHEST {
                return Taken::Ignored;
            }
            self.is_given_up |= self.acked.is_some_and(|acked| after(acked, next));
            self.wait(chunk.into_owned());
            return Taken::Waits;
        }
        let again = next.wrapping_sub(chunk.seq);
        let chunk = chunk.skip(again);
        self.next = Some(chunk.end());
        Taken::Next { chunk, again }
    }

    /// Queue a segment as Linux does: drop covered segments, keep the covering ones.
    /// So the starts and the ends have the same order.
    fn wait(&mut self, chunk: Chunk<'static>) {
        let mut at = self.waiting.partition_point(|waiting| !after(waiting.seq, chunk.seq));
        if at > 0 && self.waiting[at - 1].covers(&chunk) {
            return;
        }
        while at > 0 && chunk.covers(&self.waiting[at - 1]) {
            at -= 1;
        }
        let covered = self.waiting.range(at..).take_while(|waiting| chunk.covers(waiting)).count();
        for left_out in self.waiting.drain(at..at + covered) {
            self.waiting_bytes -= left_out.bytes.len() + OVERHEAD;
        }
        self.waiting_bytes += chunk.bytes.len() + OVERHEAD;
        self.waiting.insert(at, chunk);
    }

    /// Return the next progress; to be called until there is none.
    pub fn ready(&mut self) -> Option<Ready> {
        let next = self.next?;
        loop {
            let first = self.waiting.front()?;
            if after(first.seq, next) {
                let too_much = self.waiting_bytes > MOST_WAITING;
                let (place, seq) = (first.place, first.seq);
                return (too_much || self.is_given_up).then(|| self.give_up(place, next, seq));
            }
            let first = self.waiting.pop_front()?;
            self.waiting_bytes = self.waiting_bytes.saturating_sub(first.bytes.len() + OVERHEAD);
            self.is_given_up &= !self.waiting.is_empty();
            if after(first.end(), next) {
                let chunk = first.skip_to(next);
                self.next = Some(chunk.end());
                return Some(Ready::Chunk(chunk));
            }
        }
    }

    fn give_up(&mut self, place: Place, next: u32, seq: u32) -> Ready {
        self.next = Some(seq);
        self.is_given_up = false;
        Ready::Missing { place, seq: next, len: seq.wrapping_sub(next) }
    }

    /// Give up all holes at the end of the capture.
    pub fn end(&mut self) {
        self.is_given_up = true;
    }

    /// Return the number of bytes that were acknowledged, but are not in the capture.
    pub fn unseen(&self) -> u32 {
        match (self.next, self.acked) {
            // A FIN is acknowledged as one byte.
            (Some(next), Some(acked)) if before(next.wrapping_add(1), acked) => {
                acked.wrapping_sub(next)
            }
            _ => 0,
        }
    }
}

impl Chunk<'static> {
    fn skip_to(self, next: u32) -> Chunk<'static> {
        let count = next.wrapping_sub(self.seq);
        self.skip(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(packet: u64, seq: u32, bytes: &[u8]) -> Chunk<'_> {
        let place = Place { file: 1, packet, time_ns: packet };
        Chunk { place, base: seq, seq, bytes: bytes.into(), len: bytes.len() as u32 }
    }

    /// Return the output of a stream, `?` for each missing byte.
    fn put(stream: &mut Stream, parts: &[(u32, &[u8])]) -> String {
        let mut out = String::new();
        let mut ready = |stream: &mut Stream| {
            while let Some(ready) = stream.ready() {
                match ready {
                    Ready::Chunk(chunk) => out += std::str::from_utf8(&chunk.bytes).unwrap(),
                    Ready::Missing { len, .. } => out += &"?".repeat(len as usize),
                }
            }
            std::mem::take(&mut out)
        };
        let mut all = String::new();
        for (number, (seq, bytes)) in parts.iter().enumerate() {
            if let Taken::Next { chunk, .. } = stream.take(chunk(number as u64, *seq, bytes)) {
                all += std::str::from_utf8(&chunk.bytes).unwrap();
            }
            all += &ready(stream);
        }
        stream.end();
        all + &ready(stream)
    }

    #[test]
    fn order_is_restored_over_the_wrap_and_nothing_comes_twice() {
        let mut stream = Stream::default();
        let first = 0xFFFF_FFFE;
        stream.begin(first);
        let parts: [(u32, &[u8]); 5] =
            [(first, b"ab"), (2, b"ef"), (3, b"fg"), (first, b"abcd"), (5, b"h")];
        assert_eq!(put(&mut stream, &parts), "abcdefgh");
    }

    #[test]
    fn what_waits_is_replaced_as_linux_does() {
        let mut stream = Stream::default();
        stream.begin(0);
        // The second is covered by the first, the fourth covers the third, the last two overlap.
        let parts: [(u32, &[u8]); 7] = [
            (2, b"abcd"),
            (3, b"xx"),
            (8, b"ef"),
            (7, b"EFGH"),
            (6, b"YZ"),
            (9, b"zzzI"),
            (0, b"__"),
        ];
        assert_eq!(put(&mut stream, &parts), "__abcdYZFGHzI");
        assert_eq!((stream.waiting_bytes, stream.waiting.len()), (0, 0));
    }

    #[test]
    fn a_hole_that_was_acknowledged_is_given_up_at_the_next_segment() {
        let mut stream = Stream::default();
        stream.begin(0);
        assert_eq!(stream.take(chunk(1, 2, b"cd")), Taken::Waits);
        stream.acknowledge(4);
        assert_eq!(stream.ready(), None);
        assert_eq!(stream.take(chunk(2, 4, b"ef")), Taken::Waits);
        let place = chunk(1, 2, b"").place;
        assert_eq!(stream.ready(), Some(Ready::Missing { place, seq: 0, len: 2 }));
        assert!(matches!(stream.ready(), Some(Ready::Chunk(chunk)) if *chunk.bytes == *b"cd"));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut stream = Stream::default();
        stream.begin(0);
        let bytes = vec![0; 1000];
        let mut missing = 0;
        for number in 1..3000u32 {
            stream.take(chunk(number.into(), number * 2000, &bytes));
            while let Some(ready) = stream.ready() {
                missing += u32::from(matches!(ready, Ready::Missing { .. }));
            }
            assert!(stream.waiting_bytes <= MOST_WAITING + 2000);
        }
        assert!(missing > 1000);
    }

    #[test]
    fn keep_alives_and_strangers_are_ignored() {
        let mut stream = Stream::default();
        stream.begin(10);
        assert_eq!(stream.take(chunk(1, 9, b"x")), Taken::Ignored);
        assert_eq!(stream.take(chunk(1, 10 + FARTHEST + 1, b"x")), Taken::Ignored);
        assert_eq!(stream.take(chunk(1, 5, b"abc")), Taken::Again);
    }

    #[test]
    fn any_order_and_any_cut_gives_the_same_bytes() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let text: Vec<u8> = (0..rng.usize(1..300)).map(|_| rng.u8(b'a'..=b'z')).collect();
            let first = rng.u32(..);
            let mut parts: Vec<(u32, &[u8])> = Vec::new();
            let mut at = 0;
            while at < text.len() {
                let from = at.saturating_sub(rng.usize(..5));
                at = text.len().min(at + rng.usize(1..20));
                parts.push((first.wrapping_add(from as u32), &text[from..at]));
            }
            rng.shuffle(&mut parts);
            let mut stream = Stream::default();
            stream.begin(first);
            assert_eq!(put(&mut stream, &parts).as_bytes(), text);
        }
    }
}
