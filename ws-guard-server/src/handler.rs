//! Handlers: processing of a connection's messages.

use std::task::Waker;

use super::{
    journal::Happened,
    outbox::{Outbox, Payload, Treatment},
    protocol::{Chunk, Message},
    record::Totals,
    turn::Turn,
};

/// Takes what a client sends. Each connection has one of its own.
pub trait Handler {
    /// A whole message.
    fn message(&mut self, message: Message, replies: &mut Replies<'_>);

    /// A fragment of a message, on connections that agreed to streaming: as soon as it is there,
    /// whether or not the message ever ends.
    fn chunk(&mut self, chunk: Chunk, replies: &mut Replies<'_>);

    /// Whether it takes fragments, where streaming is agreed. If not, messages come whole there too.
    fn streams(&self) -> bool {
        true
    }

    /// Wake this when there is something to send that no message asked for.
    fn register(&self, _waker: &Waker) {}

    /// Send one such thing; whether there was any.
    fn deliver(&mut self, _replies: &mut Replies<'_>) -> Result<bool, Overflow> {
        Ok(false)
    }

    /// Bytes of such things that wait.
    fn waiting(&self) -> usize {
        0
    }

    /// Bytes of memory that it holds, without those that it shares with others.
    fn held(&self) -> usize {
        0
    }

    /// What it has subscribed to.
    fn topics(&self) -> Vec<String> {
        Vec::new()
    }
}

/// More has waited for the peer than may, and that is what ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// Where answers go.
pub struct Replies<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) treatment: Treatment<'a>,
    pub(super) turn: &'a mut Turn,
    pub(super) totals: &'a mut Totals,
    /// For followers of the connection.
    pub(super) happened: Option<Happened>,
}

impl Replies<'_> {
    /// Send a message, coded as was agreed. What cannot be sent yet, before the handshake of an
    /// encryption, is dropped.
    pub fn message(&mut self, message: Message) {
        self.send(message, Payload::Own);
    }

    /// The same with a payload that others hold as well: [`Held::shared`](super::held::Held::shared).
    pub fn shared(&mut self, message: Message) {
        self.send(message, Payload::Shared);
    }

    /// Work was done, in bytes that take as long to compress.
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

    /// Send a fragment. Nothing else may be sent between the first and the last of a message.
    pub fn chunk(&mut self, chunk: Chunk) {
        self.totals.messages_out += u64::from(chunk.last);
        self.outbox.chunk(chunk);
    }
}

/// Sends everything back.
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
