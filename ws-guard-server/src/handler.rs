//! Handlers: processing of a connection's messages.

use std::task::Waker;

use super::{
    journal::Happened,
    outbox::{Outbox, Payload, Treatment},
    protocol::{Chunk, Message},
    record::Totals,
    turn::Turn,
};

/// Receiver of a client's messages; each connection has its own.
pub trait Handler {
    /// Process a whole message.
    fn message(&mut self, message: Message, replies: &mut Replies<'_>);

    /// Process a fragment as soon as it arrives, where streaming is agreed.
    /// The message may never end.
    fn chunk(&mut self, chunk: Chunk, replies: &mut Replies<'_>);

    /// Check whether fragments are accepted, where streaming is agreed.
    /// If not, messages are whole there too.
    fn streams(&self) -> bool {
        true
    }

    /// Register the task to wake for unsolicited messages.
    fn register(&self, _waker: &Waker) {}

    /// Send one unsolicited message, and return whether there was one.
    fn deliver(&mut self, _replies: &mut Replies<'_>) -> Result<bool, Overflow> {
        Ok(false)
    }

    /// Return the number of pending bytes of unsolicited messages.
    fn waiting(&self) -> usize {
        0
    }

    /// Return the number of bytes held in memory, except those shared with others.
    fn held(&self) -> usize {
        0
    }

    /// Return the subscribed topics.
    fn topics(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Overflow of the peer's pending output, where that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// Destination of answers.
pub struct Replies<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) treatment: Treatment<'a>,
    pub(super) turn: &'a mut Turn,
    pub(super) totals: &'a mut Totals,
    /// Event for followers of the connection.
    pub(super) happened: Option<Happened>,
}

impl Replies<'_> {
    /// Send a message in the agreed coding.
    /// Before the handshake of an encryption it cannot be sent, and is dropped.
    pub fn message(&mut self, message: Message) {
        self.send(message, Payload::Own);
    }

    /// Send a message with a payload that others hold as well.
    /// See [`MemoryBudget::shared`](super::memory_budget::MemoryBudget::shared).
    pub fn shared(&mut self, message: Message) {
        self.send(message, Payload::Shared);
    }

    /// Charge work to the turn, in bytes that take as long to compress.
    pub fn spend(&mut self, bytes: usize) {
        self.turn.spend(bytes);
    }

    fn send(&mut self, message: Message, payload: Payload) {
        if self.treatment.is_mute() {
            return;
        }
        self.totals.messages_out += 1;
        self.outbox.message(message, payload, self.treatment.again(), self.turn);
    }

    /// Send a fragment; nothing else may be sent between a message's first and last.
    pub fn chunk(&mut self, chunk: Chunk) {
        self.totals.messages_out += u64::from(chunk.last);
        self.outbox.chunk(chunk);
    }
}

/// Handler that sends everything back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Handler for Echo {
    fn message(&mut self, message: Message, replies: &mut Replies<'_>) {
        replies.message(message);
    }

    fn chunk(&mut self, chunk: Chunk, replies: &mut Replies<'_>) {
        replies.chunk(chunk);
    }
}
