//! What is on its way to a peer: bounded, and with control frames ahead of what waits.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use ws_guard_common::frame::{FIN, opcode};

use super::{
    pool,
    protocol::{
        Chunk, Message,
        deflate::Deflater,
        encoder::{self, HeaderBytes},
    },
};

/// A payload of so many bytes is written from where it stands, not copied.
const LARGE: usize = 8 * 1024;
/// Shorter messages do not get shorter by compression.
const WORTH_COMPRESSING: usize = 64;

/// The latest ping whose pong could not go out yet. RFC 6455, 5.5.3 allows to answer only the
/// latest, so that pings of a peer that does not read take no more memory than this.
#[derive(Debug)]
struct Owed {
    len: u8,
    payload: [u8; 125],
}

/// Frames that the socket has not taken yet.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Whole frames, or the header of `large`.
    bytes: Vec<u8>,
    /// Bytes of both that are written.
    written: usize,
    /// A payload that follows `bytes`.
    large: Option<Bytes>,
    pong: Option<Box<Owed>>,
    /// Where the first pong ends that is encoded and not written.
    pong_end: Option<usize>,
    ping: Option<[u8; 8]>,
    /// The socket had no room at the last try.
    blocked: bool,
    /// TLS may hold bytes that it has taken.
    unflushed: bool,
}

impl Outbox {
    /// Bytes that are waiting, control frames that are not encoded yet left out.
    pub fn waiting(&self) -> usize {
        self.bytes.len() + self.large.as_ref().map_or(0, Bytes::len) - self.written
    }

    pub fn is_empty(&self) -> bool {
        !self.has_frames() && !self.unflushed
    }

    fn has_frames(&self) -> bool {
        self.waiting() > 0 || self.pong.is_some() || self.ping.is_some()
    }

    /// The answer to a ping is not with the socket yet.
    pub fn owes_pong(&self) -> bool {
        self.pong_end.is_some() || self.pong.is_some()
    }

    /// As many bytes are waiting as may: take nothing more in until they are written.
    pub fn is_full(&self, most: usize) -> bool {
        self.large.is_some() || self.waiting() >= most
    }

    /// Bytes of memory that are held.
    pub fn held(&self) -> usize {
        self.bytes.capacity() + self.large.as_ref().map_or(0, Bytes::len)
    }

    /// Queue a message.
    pub fn message(&mut self, message: Message, deflater: Option<&mut Deflater>) {
        let Some(deflater) = deflater.filter(|_| message.payload.len() >= WORTH_COMPRESSING) else {
            return self.frame(&message, false);
        };
        let mut compressed = pool::borrow_write();
        let shorter = deflater.deflate(&message.payload, &mut compressed)
            && compressed.len() < message.payload.len();
        if shorter && compressed.len() < LARGE {
            self.unlarge();
            self.head(&message, true, compressed.len());
            self.bytes.extend_from_slice(&compressed);
        } else if shorter {
            let payload = Bytes::copy_from_slice(&compressed);
            self.frame(&Message { payload, ..message }, true);
        } else {
            self.frame(&message, false);
        }
        pool::return_write(&mut compressed);
    }

    /// Queue a ping. It goes ahead of messages that are not encoded yet.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.blocked || self.large.is_some() {
            self.ping = Some(payload);
        } else {
            self.control(opcode::PING, &payload);
        }
    }

    /// Answer a ping: at once if the socket takes bytes, else when it does again, and then only the
    /// latest. Returns whether an earlier one is not answered for that.
    pub fn pong(&mut self, payload: &[u8]) -> bool {
        if !self.blocked && self.large.is_none() {
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
        self.encode_owed();
        self.unlarge();
        self.make_room();
        encoder::close(code, reason, &mut self.bytes);
    }

    /// Write until everything is written.
    pub fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<io::Result<usize>> {
        let mut total = 0;
        while self.has_frames() {
            self.encode_owed();
            match self.poll_write(cx, io) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    total += n;
                    self.unflushed = true;
                    self.advance(n);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.blocked = true;
                    return if total > 0 { Poll::Ready(Ok(total)) } else { Poll::Pending };
                }
            }
        }
        self.blocked = false;
        self.pong_end = None;
        if self.bytes.capacity() > 0 {
            pool::return_write(&mut self.bytes);
        }
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

    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        io: &mut W,
    ) -> Poll<io::Result<usize>> {
        let head = self.bytes.get(self.written..).unwrap_or_default();
        let Some(large) = &self.large else { return Pin::new(io).poll_write(cx, head) };
        let skipped = self.written.saturating_sub(self.bytes.len());
        let tail = large.get(skipped..).unwrap_or_default();
        if head.is_empty() {
            return Pin::new(io).poll_write(cx, tail);
        }
        Pin::new(io).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(tail)])
    }

    fn advance(&mut self, written: usize) {
        self.written += written;
        self.pong_end = self.pong_end.filter(|end| *end > self.written);
        if self.waiting() == 0 {
            self.bytes.clear();
            self.large = None;
            self.written = 0;
        }
    }

    /// Control frames that waited, behind what is encoded already.
    fn encode_owed(&mut self) {
        if self.large.is_some() {
            return;
        }
        if let Some(payload) = self.ping.take() {
            self.control(opcode::PING, &payload);
        }
        if let Some(owed) = self.pong.take() {
            self.encode_pong(owed.payload.get(..usize::from(owed.len)).unwrap_or_default());
        }
    }

    fn encode_pong(&mut self, payload: &[u8]) {
        self.control(opcode::PONG, payload);
        self.pong_end.get_or_insert(self.bytes.len());
    }

    fn control(&mut self, opcode: u8, payload: &[u8]) {
        self.make_room();
        encoder::control(opcode, payload, &mut self.bytes);
    }

    fn frame(&mut self, message: &Message, compressed: bool) {
        self.unlarge();
        self.head(message, compressed, message.payload.len());
        self.payload(message.payload.clone());
    }

    /// What belongs to the header that was just encoded.
    fn payload(&mut self, payload: Bytes) {
        if payload.len() < LARGE {
            self.bytes.extend_from_slice(&payload);
        } else {
            self.large = Some(payload);
        }
    }

    /// Queue a fragment. Between the first and the last of a message no other may be queued.
    pub fn chunk(&mut self, chunk: Chunk) {
        let opcode = if chunk.first { chunk.kind.opcode() } else { opcode::CONTINUATION };
        let fin = if chunk.last { FIN } else { 0 };
        self.unlarge();
        self.make_room();
        let header = HeaderBytes::new(fin | opcode, chunk.payload.len());
        self.bytes.extend_from_slice(header.as_slice());
        self.payload(chunk.payload);
    }

    fn head(&mut self, message: &Message, compressed: bool, len: usize) {
        self.make_room();
        let header = HeaderBytes::message(message.kind, compressed, len);
        self.bytes.extend_from_slice(header.as_slice());
    }

    fn make_room(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = pool::borrow_write();
        }
    }

    /// Behind a large payload there is no room for another frame: copy it.
    fn unlarge(&mut self) {
        if let Some(large) = self.large.take() {
            self.bytes.extend_from_slice(&large);
        }
    }
}
