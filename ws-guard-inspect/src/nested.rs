//! Length-delimited protocol in WebSocket messages: their payloads form its stream.
//!
//! Each message is to that stream what a segment is to TCP's, so the same code finds units
//! that share a message, or span several.

use std::sync::Arc;

use crate::{
    finding::{At, Place, Side},
    lane::{Counts, Event},
    protocol::Protocol,
    reassembly::Chunk,
    units::Units,
};

/// Number of leading bytes examined of a message.
/// In a longer one, what follows is known as a body's or not at all.
const MOST: usize = 1 << 20;

/// Nested protocol in the messages of one direction.
#[derive(Debug)]
pub struct Nested {
    units: Units,
    pub counts: Counts,
    /// Payload of the current message, and its length.
    message: Vec<u8>,
    length: u64,
    is_compressed: bool,
    is_holed: bool,
    /// Bytes of all earlier messages.
    at: u32,
    /// Number of compressed messages, which are not examined.
    pub compressed: u64,
}

impl Nested {
    /// Create the state of a direction. `is_begin`: no message came before.
    pub fn new(side: Side, protocol: &Arc<Protocol>, is_begin: bool) -> Nested {
        Nested {
            units: Units::new(side, Arc::clone(protocol), is_begin),
            counts: Counts::default(),
            message: Vec::new(),
            length: 0,
            is_compressed: false,
            is_holed: false,
            at: 0,
            compressed: 0,
        }
    }

    /// Add unmasked bytes of the message's payload.
    pub fn push(&mut self, bytes: impl Iterator<Item = u8>) {
        let room = MOST.saturating_sub(self.message.len());
        self.message.extend(bytes.take(room));
    }

    /// Add a frame of `length` payload bytes to the message.
    pub const fn frame(&mut self, length: u64, is_compressed: bool) {
        self.length = self.length.saturating_add(length);
        self.is_compressed |= is_compressed;
    }

    /// Record that bytes of the message are not in the capture.
    pub const fn miss(&mut self) {
        self.is_holed = true;
    }

    /// Process a complete message.
    pub fn end(&mut self, ended: Place, out: &mut Vec<Event>) {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        let bytes = std::mem::take(&mut self.message).into();
        let (is_holed, is_compressed) = (self.is_holed, self.is_compressed);
        (self.length, self.is_holed, self.is_compressed) = (0, false, false);
        let (base, seq) = (self.at, self.at);
        let mut told = Vec::new();
        if is_compressed {
            self.compressed += 1;
            self.units.skip(At::new(ended, seq, 0), &mut told);
        } else if is_holed {
            self.units.miss(ended, seq, length, &mut told);
        } else {
            let chunk = Chunk { place: ended, base, seq, bytes, len: length };
            self.units.take(&chunk, &mut self.counts, &mut told);
        }
        self.at = self.at.wrapping_add(length);
        out.extend(told.into_iter().map(Event::nested));
    }

    /// Record that messages are missing.
    pub fn interrupt(&mut self, at: At, out: &mut Vec<Event>) {
        self.message.clear();
        (self.length, self.is_holed, self.is_compressed) = (0, false, false);
        let mut told = Vec::new();
        self.units.lose(At { seq: self.at, offset: 0, ..at }, &mut told);
        out.extend(told.into_iter().map(Event::nested));
    }
}
