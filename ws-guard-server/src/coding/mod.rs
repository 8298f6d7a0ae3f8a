//! Coding of messages by a subprotocol, before the handler: Snappy or encryption.
//!
//! Both work on whole messages, and hold nothing for an idle connection but keys. Work longer
//! than a turn is continued in the next one: [`Opening`] and [`Sealing`].

pub mod noise;
mod opening;
mod sealing;
pub mod snappy;

use std::{task::Poll, time::Instant};

use self::noise::Noise;
pub use self::{opening::Opening, sealing::Sealing};
use super::{
    negotiation::Choice,
    noise_key::NoiseKey,
    protocol::{Kind, Message, ProtocolError},
    turn::Turn,
};

/// Coding of one connection's messages.
#[derive(Debug)]
pub enum Coding {
    /// Snappy: binary messages are blocks, text is unchanged.
    Snappy,
    Noise(Noise),
}

/// Decoded message from the peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    Message(Message),
    /// Handshake step, with its answer, to be sent as it is.
    Answer(Message),
}

impl Coding {
    /// Create the coding of a choice, if any.
    /// `deflated` is whether permessage-deflate was agreed; a handshake has to be done by
    /// `deadline`.
    pub fn of(
        choice: &Choice,
        deflated: bool,
        key: Option<&NoiseKey>,
        deadline: Instant,
    ) -> Option<Coding> {
        let features = choice.features;
        if features.encryption {
            Some(Coding::Noise(Noise::new(key, choice, deadline)))
        } else if features.compression && !deflated {
            Some(Coding::Snappy)
        } else {
            None
        }
    }

    /// Decode a whole message of the peer, of at most `max` bytes decompressed.
    ///
    /// # Errors
    /// If it is not as agreed; then the connection is over.
    pub fn open(&mut self, message: Message, max: usize) -> Result<Opened, ProtocolError> {
        let opened = Opening::new(message).go_on(self, max, &mut Turn::endless())?;
        opened.ok_or(ProtocolError::Encryption)
    }

    /// Encode a message for the peer.
    /// Returns `None` before the end of a handshake, when nothing can be sent.
    pub fn seal(&mut self, message: Message) -> Option<Message> {
        match Sealing::default().go_on(self, &message, &mut Turn::endless()) {
            Poll::Ready(sealed) => sealed,
            Poll::Pending => None,
        }
    }

    /// Check whether nothing can be sent yet, because the handshake is pending.
    pub fn is_mute(&self) -> bool {
        matches!(self, Coding::Noise(noise) if noise.is_mute())
    }

    /// Check whether messages of this kind are changed.
    pub fn changes(&self, kind: Kind) -> bool {
        matches!(self, Coding::Noise(_)) || kind == Kind::Binary
    }

    /// Return the deadline of a pending handshake.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Coding::Snappy => None,
            Coding::Noise(noise) => noise.deadline(),
        }
    }
}
