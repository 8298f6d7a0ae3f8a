//! Pending output to a peer: bounded, and with control frames ahead of the rest.
//!
//! A message that takes longer than a turn to compress or encrypt waits in a backlog, with
//! everything after it, and is one frame when it is done. So control frames may be sent meanwhile,
//! and a message that does not shrink can still be sent unchanged.

mod backlog;
mod queue;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use ws_guard_common::frame::{FIN, opcode};

pub use self::{backlog::Treatment, queue::Payload};
use self::{
    backlog::{Backlog, Next},
    queue::{LARGE, Queue},
};
use super::{
    pool,
    protocol::{
        Chunk, Message,
        deflate::{Deflater, Deflating},
        encoder::{self, HeaderBytes},
    },
    turn::{TURN, Turn},
};

/// Multiple of the limit that may gather while the socket accepts bytes.
/// It applies to uncopied payloads: those of one read buffer are written together.
const TOGETHER: usize = 3;
/// Maximum number of bytes copied when the socket accepts no more.
const LITTLE: usize = 48 * 1024;

/// Cost of compression, as a multiple of writing.
const WRITING: usize = 16;

/// Latest ping whose pong could not be sent yet.
/// RFC 6455, 5.5.3 allows to answer only the latest, so that pings of a peer that does not read
/// take no more memory than this.
#[derive(Debug)]
struct Owed {
    len: u8,
    payload: [u8; 125],
}

/// Frames that the socket has not accepted yet.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: Queue,
    /// Messages that are not ready for the queue.
    backlog: Option<Box<Backlog>>,
    pong: Option<Box<Owed>>,
    /// Position after the first unwritten pong in the queue.
    pong_end: Option<usize>,
    ping: Option<[u8; 8]>,
    /// `true` if the socket had no room at the last try.
    blocked: bool,
    /// `true` if TLS may hold bytes that it has accepted.
    unflushed: bool,
}

impl Outbox {
    /// Return the number of pending bytes, without unencoded control frames.
    pub fn waiting(&self) -> usize {
        self.queue.waiting() + self.backlog.as_ref().map_or(0, |backlog| backlog.waiting())
    }

    pub fn is_empty(&self) -> bool {
        self.is_flushed() && !self.is_working()
    }

    /// Check whether nothing waits for the socket.
    pub fn is_flushed(&self) -> bool {
        !self.has_frames() && !self.unflushed
    }

    /// Check whether anything waits for [`Outbox::work`].
    pub fn is_working(&self) -> bool {
        self.backlog.is_some()
    }

    fn has_frames(&self) -> bool {
        self.queue.waiting() > 0 || self.pong.is_some() || self.ping.is_some()
    }

    /// Check whether the answer to a ping is not with the socket yet.
    pub fn owes_pong(&self) -> bool {
        self.pong_end.is_some() || self.pong.is_some()
    }

    /// Check whether pending bytes have reached the limit: nothing more is read then.
    pub fn is_full(&self, most: usize) -> bool {
        let gathers = !self.blocked && self.queue.is_sharing();
        self.is_working() || self.queue.waiting() >= if gathers { TOGETHER * most } else { most }
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.queue.held() + self.backlog.as_ref().map_or(0, |backlog| backlog.held())
    }

    /// Queue a message after the agreed encoding.
    /// It is queued at once if that takes no longer than a turn.
    pub fn message(
        &mut self,
        message: Message,
        payload: Payload,
        mut treatment: Treatment<'_>,
        turn: &mut Turn,
    ) {
        let applies = treatment.applies(&message);
        if self.is_working() || applies && message.payload.len() > TURN {
            return self.backlog.get_or_insert_default().push(message, payload);
        }
        if !applies {
            return self.frame(message, payload, false);
        }
        turn.spend(message.payload.len());
        if let Some(coding) = &mut treatment.coding {
            if let Some(sealed) = coding.seal(message) {
                self.frame(sealed, Payload::Own, false);
            }
        } else if let Some(deflater) = &mut treatment.deflater {
            self.deflate(message, payload, deflater);
        }
    }

    fn deflate(&mut self, message: Message, payload: Payload, deflater: &mut Deflater) {
        let mut progress = Deflating::into(pool::borrow_write());
        let done = deflater.go_on(&message.payload, &mut progress, &mut Turn::endless());
        let (shorter, mut compressed) = (done == Some(true), progress.out());
        if shorter && compressed.len() < LARGE {
            self.head(&message, true, compressed.len());
            self.queue.with_room(compressed.len()).extend_from_slice(&compressed);
        } else if shorter {
            let compressed = Bytes::copy_from_slice(&compressed);
            self.frame(Message { payload: compressed, ..message }, Payload::Own, true);
        } else {
            self.frame(message, payload, false);
        }
        pool::return_write(&mut compressed);
    }

    /// Continue encoding that takes longer than a turn.
    pub fn work(&mut self, mut treatment: Treatment<'_>, turn: &mut Turn) {
        while let Some(backlog) = &mut self.backlog {
            match backlog.next(&mut treatment, turn) {
                Next::Message(None) => {}
                Next::Message(Some(treated)) => {
                    self.frame(treated.message, treated.payload, treated.compressed);
                }
                Next::Close(code, reason) => self.encode_close(code, &reason),
                Next::TurnOver => return,
                Next::Nothing => self.backlog = None,
            }
        }
    }

    /// Queue a ping, ahead of unencoded messages.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.blocked {
            self.ping = Some(payload);
        } else {
            self.control(opcode::PING, &payload);
        }
    }

    /// Answer a ping: at once if the socket accepts bytes, else later, only the latest.
    /// Returns whether an earlier one remains unanswered because of that.
    pub fn pong(&mut self, payload: &[u8]) -> bool {
        if !self.blocked {
            self.encode_pong(payload);
            return false;
        }
        let mut owed = Owed { len: 0, payload: [0; 125] };
        for (slot, byte) in owed.payload.iter_mut().zip(payload) {
            *slot = *byte;
            owed.len += 1;
        }
        self.pong.replace(Box::new(owed)).is_some()
    }

    /// Queue the last frame.
    pub fn close(&mut self, code: u16, reason: &str) {
        match &mut self.backlog {
            Some(backlog) => backlog.close(code, reason),
            None => self.encode_close(code, reason),
        }
    }

    fn encode_close(&mut self, code: u16, reason: &str) {
        self.encode_owed();
        encoder::close(code, reason, self.queue.copied());
    }

    /// Write until all is written, the socket accepts no more, or the turn is over.
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
        turn: &mut Turn,
    ) -> Poll<io::Result<usize>> {
        let mut total = 0;
        while self.has_frames() {
            if total > 0 && turn.is_over() {
                return Poll::Ready(Ok(total));
            }
            self.encode_owed();
            match self.queue.poll_write(cx, io) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    total += n;
                    turn.spend(n / WRITING);
                    self.unflushed = true;
                    self.advance(n);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if total > 0 || !self.blocked {
                        self.block();
                    }
                    return if total > 0 { Poll::Ready(Ok(total)) } else { Poll::Pending };
                }
            }
        }
        self.blocked = false;
        self.pong_end = None;
        self.queue.release();
        match Pin::new(io).poll_flush(cx) {
            Poll::Pending if total == 0 => return Poll::Pending,
            Poll::Pending => {}
            Poll::Ready(flushed) => {
                flushed?;
                self.unflushed = false;
            }
        }
        Poll::Ready(Ok(total))
    }

    fn advance(&mut self, written: usize) {
        self.queue.advance(written);
        let emptied = self.queue.waiting() == 0;
        self.pong_end = self.pong_end.filter(|end| !emptied && *end > self.queue.written());
    }

    /// Handle a socket that accepts no more, and release memory.
    /// A few bytes shall not hold the whole buffer into which they were read, and written bytes
    /// shall not pile up in front of unwritten ones.
    fn block(&mut self) {
        self.blocked = true;
        if self.queue.waiting() < LITTLE.max(self.queue.written()) {
            let gone = self.queue.settle();
            self.pong_end = self.pong_end.map(|end| end - gone);
        }
    }

    /// Encode waiting control frames, after everything already encoded.
    fn encode_owed(&mut self) {
        if let Some(payload) = self.ping.take() {
            self.control(opcode::PING, &payload);
        }
        if let Some(owed) = self.pong.take() {
            self.encode_pong(owed.payload.get(..usize::from(owed.len)).unwrap_or_default());
        }
    }

    fn encode_pong(&mut self, payload: &[u8]) {
        self.control(opcode::PONG, payload);
        self.pong_end.get_or_insert(self.queue.end());
    }

    fn control(&mut self, opcode: u8, payload: &[u8]) {
        encoder::control(opcode, payload, self.queue.copied());
    }

    fn frame(&mut self, message: Message, payload: Payload, compressed: bool) {
        self.head(&message, compressed, message.payload.len());
        self.queue.payload(message.payload, payload);
    }

    /// Queue a fragment; nothing else may be queued between a message's first and last.
    pub fn chunk(&mut self, chunk: Chunk) {
        let opcode = if chunk.first { chunk.kind.opcode() } else { opcode::CONTINUATION };
        let fin = if chunk.last { FIN } else { 0 };
        let header = HeaderBytes::new(fin | opcode, chunk.payload.len());
        self.queue.copied().extend_from_slice(header.as_slice());
        self.queue.payload(chunk.payload, Payload::Own);
    }

    fn head(&mut self, message: &Message, compressed: bool, len: usize) {
        let header = HeaderBytes::message(message.kind, compressed, len);
        self.queue.copied().extend_from_slice(header.as_slice());
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, task::Waker, time::Instant};

    use bytes::BytesMut;

    use super::*;
    use crate::protocol::{
        Kind,
        extension::{DeflateOptions, negotiate},
    };

    /// Socket that accepts as many bytes as it has room for.
    #[derive(Default)]
    pub struct Socket {
        pub room: usize,
        pub got: Vec<u8>,
        writes: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let before = self.room;
            for slice in slices {
                let taken = &slice[..slice.len().min(self.room)];
                self.room -= taken.len();
                self.got.extend_from_slice(taken);
            }
            self.writes += 1;
            if before == 0 { Poll::Pending } else { Poll::Ready(Ok(before - self.room)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Limit of pending bytes.
    const MOST: usize = 48 * 1024;

    fn message(payload: impl Into<Bytes>) -> Message {
        Message { kind: Kind::Binary, payload: payload.into() }
    }

    /// Queue a message that is not changed.
    fn queue(outbox: &mut Outbox, message: Message) {
        outbox.message(message, Payload::Own, Treatment::default(), &mut Turn::endless());
    }

    /// Let the socket accept this number of further bytes.
    fn flush(outbox: &mut Outbox, socket: &mut Socket, room: usize) {
        socket.room = room;
        let written = outbox.poll_flush(
            &mut Context::from_waker(Waker::noop()),
            socket,
            &mut Turn::endless(),
        );
        assert!(!matches!(written, Poll::Ready(Err(_))), "{written:?}");
    }

    #[test]
    fn large_messages_that_came_together_go_out_in_one_write() {
        let (mut outbox, mut socket) = (Outbox::default(), Socket::default());
        queue(&mut outbox, message(vec![1; 65536]));
        assert!(!outbox.is_full(MOST), "there is room for another");
        assert!(outbox.is_full(MOST / 12), "not where memory is short");
        queue(&mut outbox, message(vec![2; 65536]));
        queue(&mut outbox, message(vec![3; 16384]));
        assert!(outbox.is_full(MOST));
        flush(&mut outbox, &mut socket, usize::MAX);
        assert_eq!((socket.writes, socket.got.len()), (1, 2 * (10 + 65536) + 4 + 16384));
        assert_eq!(outbox.held(), 0);
    }

    /// Whatever the limit of pending bytes.
    #[test]
    fn a_peer_that_never_takes_all_makes_nothing_grow() {
        for most in [MOST, 10 * MOST] {
            let (mut outbox, mut socket) = (Outbox::default(), Socket::default());
            queue(&mut outbox, message(vec![0; 4096]));
            flush(&mut outbox, &mut socket, 1);
            for _ in 0..1000 {
                while !outbox.is_full(most) {
                    queue(&mut outbox, message(vec![0; 4096]));
                }
                flush(&mut outbox, &mut socket, 20_000);
                assert!(outbox.waiting() > 0, "it never takes all");
                assert!(outbox.held() <= 4 * most, "{} bytes for {most}", outbox.held());
            }
        }
    }

    #[test]
    fn behind_a_blocked_socket_a_message_does_not_keep_the_buffer_it_was_read_into() {
        let (mut outbox, mut socket) = (Outbox::default(), Socket::default());
        let mut buffer = BytesMut::with_capacity(pool::ROOM);
        buffer.resize(LARGE, 7);
        queue(&mut outbox, message(buffer.split().freeze()));
        assert!(!buffer.try_reclaim(pool::ROOM), "it is written from there");
        flush(&mut outbox, &mut socket, 3);
        assert!(buffer.try_reclaim(pool::ROOM));
        flush(&mut outbox, &mut socket, usize::MAX);
        assert_eq!(socket.got[4..], [7; LARGE]);
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes as u32 / 4).flat_map(|i| (i / 7 * 31).to_le_bytes()).collect()
    }

    fn deflater() -> Deflater {
        let options = DeflateOptions::default();
        Deflater::new(&negotiate(["permessage-deflate"], &options).unwrap())
    }

    /// Count the turns until the backlog is empty; the socket accepts everything.
    fn turns(outbox: &mut Outbox, deflater: &mut Deflater, socket: &mut Socket) -> usize {
        let mut turns = 0;
        while outbox.is_working() {
            let treatment = Treatment { deflater: Some(deflater), coding: None };
            outbox.work(treatment, &mut Turn::new(Instant::now()));
            flush(outbox, socket, usize::MAX);
            turns += 1;
        }
        turns
    }

    #[test]
    fn a_long_message_takes_turns_and_what_is_behind_it_stays_there() {
        let (mut outbox, mut socket, mut deflater) =
            (Outbox::default(), Socket::default(), deflater());
        let long = text(1 << 20);
        let [mut first, mut second] = [(); 2].map(|()| Turn::new(Instant::now()));
        let mut treatment = Treatment { deflater: Some(&mut deflater), coding: None };
        outbox.message(message(long.clone()), Payload::Own, treatment.again(), &mut first);
        outbox.message(message("behind"), Payload::Own, treatment.again(), &mut second);
        outbox.close(1000, "last");
        outbox.message(message("never"), Payload::Own, treatment.again(), &mut second);
        assert!(outbox.is_full(usize::MAX) && !outbox.is_empty() && outbox.is_flushed());
        assert_eq!(outbox.waiting(), long.len() + 6);
        assert!(outbox.held() >= long.len());
        // Control frames do not wait for it.
        outbox.pong(b"?");
        flush(&mut outbox, &mut socket, usize::MAX);
        assert_eq!(socket.got, b"\x8a\x01?");
        socket.got.clear();
        let turns = turns(&mut outbox, &mut deflater, &mut socket);
        assert!(turns > long.len() / (2 * TURN), "{turns} turns");
        assert_eq!(socket.got[0], 0xC2, "one frame, compressed");
        assert!(socket.got.len() < long.len() / 2);
        assert!(socket.got.ends_with(b"\x82\x06behind\x88\x06\x03\xe8last"));
        assert_eq!((outbox.held(), outbox.waiting(), outbox.is_empty()), (0, 0, true));
    }

    /// Uncompressed, and from its place in memory.
    #[test]
    fn a_long_message_that_does_not_get_shorter_goes_uncompressed() {
        let (mut outbox, mut socket, mut deflater) =
            (Outbox::default(), Socket::default(), deflater());
        let mut random = vec![0; 500_000];
        fastrand::Rng::with_seed(7).fill(&mut random);
        let treatment = Treatment { deflater: Some(&mut deflater), coding: None };
        let turn = &mut Turn::new(Instant::now());
        outbox.message(message(random.clone()), Payload::Own, treatment, turn);
        assert!(turns(&mut outbox, &mut deflater, &mut socket) > 1);
        assert_eq!(socket.got[..2], [0x82, 127]);
        assert!(socket.got[10..] == random);
    }

    #[test]
    fn a_pong_is_owed_until_the_socket_has_one() {
        let (mut outbox, mut socket) = (Outbox::default(), Socket::default());
        queue(&mut outbox, message(vec![1; 10_000]));
        assert!(!outbox.pong(b"first"));
        queue(&mut outbox, message(vec![2; 10_000]));
        // A header of 4 bytes, a payload, and 7 bytes of pong.
        flush(&mut outbox, &mut socket, 10_010);
        assert!(outbox.owes_pong(), "a byte of it is missing");
        assert!(!outbox.pong(b"second") && outbox.pong(b"third"));
        flush(&mut outbox, &mut socket, 1);
        assert!(!outbox.owes_pong(), "the peer reads, however slowly");
        flush(&mut outbox, &mut socket, usize::MAX);
        assert_eq!(socket.got[10_004..10_011], *b"\x8a\x05first");
        assert!(socket.got.ends_with(b"\x8a\x05third"), "the second is passed over");
    }
}
