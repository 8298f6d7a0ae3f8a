//! Output bytes in order: small pieces are merged, large ones stay in place.
//! All of them are written in one system call.

use std::{
    io::{self, IoSlice},
    iter::once,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::{output_limit, pool};

/// Minimum length of a payload that is not copied.
pub const LARGE: usize = 8 * 1024;
/// Number of copied bytes above which a queue moves into a buffer of the pool.
/// Growing by doubling would waste as much again.
const GATHERING: usize = 4 * 1024;
/// Size of such a buffer in bytes: the limit of pending output, and a payload.
const ROOM: usize = output_limit::DEFAULT as usize + LARGE;
/// Maximum length of a header or control frame in bytes.
const CONTROL: usize = 2 + 125;
/// Maximum number of pieces in a write.
const PIECES: usize = 16;
/// Maximum number of bytes in a write: with TLS they are all encrypted in it.
const AT_ONCE: usize = 512 * 1024;

/// Owner of a payload's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// This connection.
    Own,
    /// Several connections; the memory is counted elsewhere.
    Shared,
}

/// Payload that is not copied.
#[derive(Debug)]
struct Shared {
    /// Number of copied bytes before it.
    at: usize,
    payload: Bytes,
}

/// Bytes not yet accepted by the socket; positions count from `copied`'s start.
#[derive(Debug, Default)]
pub struct Queue {
    copied: Vec<u8>,
    shared: Vec<Shared>,
    /// Number of bytes in shared payloads.
    shared_len: usize,
    /// Number of those that are counted elsewhere.
    elsewhere: usize,
    /// Number of bytes of both that are written.
    written: usize,
}

impl Queue {
    /// Return the number of pending bytes.
    pub fn waiting(&self) -> usize {
        self.end() - self.written
    }

    /// Return the position after everything.
    pub fn end(&self) -> usize {
        self.copied.len() + self.shared_len
    }

    /// Return the position up to which the socket has accepted it.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Check whether some of it is not copied.
    pub fn is_sharing(&self) -> bool {
        self.shared_len > 0
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.copied.capacity() + self.shared_len - self.elsewhere
    }

    /// Return the buffer to which headers and control frames are appended.
    pub fn copied(&mut self) -> &mut Vec<u8> {
        self.with_room(CONTROL)
    }

    /// Return the buffer with room for this number of bytes.
    pub fn with_room(&mut self, more: usize) -> &mut Vec<u8> {
        let needed = self.copied.len() + more;
        if self.copied.capacity() == 0 {
            self.copied = pool::borrow_write();
        }
        if needed > self.copied.capacity() && (GATHERING..=ROOM).contains(&needed) {
            let mut wide = pool::borrow_write();
            wide.reserve_exact(ROOM);
            wide.extend_from_slice(&self.copied);
            self.copied = wide;
        }
        &mut self.copied
    }

    /// Append a payload, as a copy if it is small.
    pub fn payload(&mut self, payload: Bytes, whose: Payload) {
        if payload.len() < LARGE {
            self.with_room(payload.len()).extend_from_slice(&payload);
        } else {
            self.shared_len += payload.len();
            self.elsewhere += if whose == Payload::Shared { payload.len() } else { 0 };
            self.shared.push(Shared { at: self.copied.len(), payload });
        }
    }

    /// Write once.
    pub fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<io::Result<usize>> {
        if self.shared.is_empty() {
            let rest = self.copied.get(self.written..).unwrap_or_default();
            return Pin::new(io).poll_write(cx, rest.get(..AT_ONCE).unwrap_or(rest));
        }
        let mut slices = [IoSlice::new(&[]); PIECES];
        let (mut count, mut room) = (0, AT_ONCE);
        for (slice, piece) in slices.iter_mut().zip(self.rest()) {
            *slice = IoSlice::new(piece.get(..room).unwrap_or(piece));
            room -= slice.len();
            count += 1;
            if room == 0 {
                break;
            }
        }
        Pin::new(io).poll_write_vectored(cx, slices.get(..count).unwrap_or_default())
    }

    /// Record that the socket has accepted this number of bytes.
    pub fn advance(&mut self, written: usize) {
        self.written += written;
        if self.waiting() == 0 {
            self.clear();
        }
    }

    /// Release written bytes, and the buffers of shared payloads, whose rest is copied.
    /// Returns by how much positions shrink.
    pub fn settle(&mut self) -> usize {
        if self.written == 0 && self.shared.is_empty() {
            return 0;
        }
        let gone = self.written;
        if self.shared.is_empty() && 2 * self.waiting() >= self.copied.capacity() {
            self.copied.drain(..gone);
            self.written = 0;
            return gone;
        }
        let mut left = Vec::with_capacity(self.waiting());
        self.rest().for_each(|piece| left.extend_from_slice(piece));
        self.clear();
        pool::return_write(&mut self.copied);
        self.copied = left;
        gone
    }

    /// Release the memory of an empty queue.
    pub fn release(&mut self) {
        if self.copied.capacity() > 0 {
            pool::return_write(&mut self.copied);
        }
        self.shared = Vec::new();
    }

    fn clear(&mut self) {
        self.copied.clear();
        self.shared.clear();
        self.shared_len = 0;
        self.elsewhere = 0;
        self.written = 0;
    }

    /// Return the pending pieces, none of them empty.
    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        let shared = self.shared.iter().map(|shared| (shared.at, &*shared.payload));
        let (mut from, mut skip) = (0, self.written);
        let pieces =
            shared.chain(once((self.copied.len(), &[][..]))).flat_map(move |(to, payload)| {
                let head = self.copied.get(from..to).unwrap_or_default();
                from = to;
                [head, payload]
            });
        pieces.filter_map(move |piece| {
            let rest = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            (!rest.is_empty()).then_some(rest)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::{super::tests::Socket, *};

    /// Like pongs to a peer that accepts less than it requests.
    #[test]
    fn small_pieces_gather_in_one_buffer() {
        let (mut queue, mut socket) = (Queue::default(), Socket::default());
        let mut cx = Context::from_waker(Waker::noop());
        let mut buffers = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            while queue.waiting() < output_limit::DEFAULT as usize {
                queue.copied().extend_from_slice(&[7; CONTROL]);
            }
            buffers.insert(queue.copied.as_ptr());
            assert_eq!(queue.held(), ROOM);
            socket.room = 10_000;
            let Poll::Ready(Ok(written)) = queue.poll_write(&mut cx, &mut socket) else {
                panic!("there was room");
            };
            queue.advance(written);
            queue.settle();
        }
        assert_eq!(buffers.len(), 1);
    }

    #[test]
    fn a_few_bytes_do_not_keep_the_buffer_they_were_gathered_in() {
        let mut queue = Queue::default();
        queue.payload(vec![7; LARGE - 1].into(), Payload::Own);
        queue.payload(vec![8; 100].into(), Payload::Own);
        queue.advance(LARGE - 1);
        assert_eq!((queue.settle(), queue.held()), (LARGE - 1, 100));
    }

    #[test]
    fn what_is_counted_elsewhere_is_not_counted_here() {
        let mut queue = Queue::default();
        queue.payload(vec![7; LARGE].into(), Payload::Own);
        queue.payload(vec![7; LARGE].into(), Payload::Shared);
        assert_eq!((queue.waiting(), queue.held()), (2 * LARGE, LARGE));
        queue.settle();
        // Now they belong to this connection alone.
        assert_eq!((queue.waiting(), queue.held()), (2 * LARGE, 2 * LARGE));
        queue.advance(2 * LARGE);
        queue.release();
        assert_eq!(queue.held(), 0);
    }

    proptest! {
        #[test]
        fn every_byte_once_and_in_order(
            lengths in prop::collection::vec(prop_oneof![1usize..200, LARGE - 1..2 * LARGE], 1..60),
            takes in prop::collection::vec(1usize..3 * LARGE, 1..20),
            settle in prop::collection::vec(any::<bool>(), 1..7),
        ) {
            let (mut queue, mut expected) = (Queue::default(), Vec::new());
            for (number, length) in lengths.into_iter().enumerate() {
                let payload = vec![number as u8; length];
                expected.extend_from_slice(&payload);
                queue.payload(payload.into(), Payload::Own);
            }
            let mut socket = Socket::default();
            let mut cx = Context::from_waker(Waker::noop());
            for (take, settle) in takes.iter().cycle().zip(settle.iter().cycle()) {
                if queue.waiting() == 0 {
                    break;
                }
                socket.room = *take;
                let Poll::Ready(Ok(written)) = queue.poll_write(&mut cx, &mut socket) else {
                    panic!("there was room");
                };
                queue.advance(written);
                prop_assert_eq!(queue.waiting(), expected.len() - socket.got.len());
                if *settle {
                    queue.settle();
                    prop_assert_eq!((queue.written(), queue.is_sharing()), (0, false));
                }
            }
            prop_assert!(socket.got == expected, "other bytes than were queued");
        }
    }
}
