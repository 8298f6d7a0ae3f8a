//! What a connection is for: what becomes of its messages.

use super::{
    coding::Coding,
    outbox::Outbox,
    protocol::{Chunk, Message, deflate::Deflater},
    record::Totals,
};

/// Takes what a client sends. Each connection has one of its own.
pub trait Handler {
    /// A whole message.
    fn message(&mut self, message: Message, replies: &mut Replies<'_>);

    /// A fragment of a message, on connections that agreed to streaming: as soon as it is there,
    /// whether or not the message ever ends.
    fn chunk(&mut self, chunk: Chunk, replies: &mut Replies<'_>);
}

/// Where answers go.
pub struct Replies<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) deflater: Option<&'a mut Deflater>,
    pub(super) coding: Option<&'a mut Coding>,
    pub(super) totals: &'a mut Totals,
}

impl Replies<'_> {
    /// Send a message, coded as was agreed. What cannot be sent yet, before the handshake of an
    /// encryption, is dropped.
    pub fn message(&mut self, message: Message) {
        let message = match &mut self.coding {
            None => Some(message),
            Some(coding) => coding.seal(message),
        };
        let Some(message) = message else { return };
        self.totals.messages_out += 1;
        self.outbox.message(message, self.deflater.as_deref_mut());
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
