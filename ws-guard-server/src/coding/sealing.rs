//! Message to the peer in encoding: compression, encryption.

use std::task::Poll;

use bytes::Bytes;

use super::{
    Coding,
    noise::{Encrypting, Noise, SNAPPY, TEXT},
    snappy::Packing,
};
use crate::{
    protocol::{Kind, Message},
    turn::Turn,
};

/// Progress of encoding.
#[derive(Debug, Default)]
pub struct Sealing {
    packing: Packing,
    /// Message as a block, once compressed.
    packed: Option<Bytes>,
    encrypting: Encrypting,
}

impl Sealing {
    /// Continue with a message, the same until done; pending when the turn is over.
    /// The result is empty where nothing can be sent.
    pub fn go_on(
        &mut self,
        coding: &mut Coding,
        message: &Message,
        turn: &mut Turn,
    ) -> Poll<Option<Message>> {
        match coding {
            Coding::Snappy if message.kind == Kind::Text => Poll::Ready(Some(message.clone())),
            Coding::Snappy => {
                if !self.packing.go_on(&message.payload, turn) {
                    return Poll::Pending;
                }
                let payload = std::mem::take(&mut self.packing).into_block();
                Poll::Ready(Some(Message { payload, ..*message }))
            }
            Coding::Noise(noise) => self.encrypt(noise, message, turn),
        }
    }

    fn encrypt(
        &mut self,
        noise: &mut Noise,
        message: &Message,
        turn: &mut Turn,
    ) -> Poll<Option<Message>> {
        if noise.is_mute() {
            return Poll::Ready(None);
        }
        let mut kind = if message.kind == Kind::Text { TEXT } else { 0 };
        if noise.compresses() {
            kind |= SNAPPY;
            if self.packed.is_none() {
                if !self.packing.go_on(&message.payload, turn) {
                    return Poll::Pending;
                }
                self.packed = Some(std::mem::take(&mut self.packing).into_block());
            }
        }
        let bytes = self.packed.as_ref().unwrap_or(&message.payload);
        match noise.encrypt(bytes, kind, &mut self.encrypting, turn) {
            None => Poll::Pending,
            Some(Ok(payload)) => Poll::Ready(Some(Message { kind: Kind::Binary, payload })),
            Some(Err(_)) => Poll::Ready(None),
        }
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.packing.held() + self.packed.as_ref().map_or(0, Bytes::len) + self.encrypting.held()
    }
}
