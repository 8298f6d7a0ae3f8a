//! What a subprotocol does to messages, between the frames and the handler: Snappy, or encryption.
//!
//! Both keep to whole messages, and hold nothing for an idle connection but keys. What takes longer
//! than a turn goes on in the next one: [`Opening`] and [`Sealing`].

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

/// What is done to the messages of one connection.
#[derive(Debug)]
pub enum Coding {
    /// Binary messages are blocks of Snappy; text goes as it is.
    Snappy,
    Noise(Noise),
}

/// What a message from the peer was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    Message(Message),
    /// A step of a handshake, and its answer, to be sent as it is.
    Answer(Message),
}

impl Coding {
    /// Result of a choice: `deflated` is whether permessage-deflate was agreed, and a handshake
    /// has to be done by `deadline`.
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

    /// What a message of the peer means, found out as a whole. It may be at most `max` bytes,
    /// decompressed.
    ///
    /// # Errors
    /// When it is not what was agreed; then the connection is over.
    pub fn open(&mut self, message: Message, max: usize) -> Result<Opened, ProtocolError> {
        let opened = Opening::new(message).go_on(self, max, &mut Turn::endless())?;
        opened.ok_or(ProtocolError::Encryption)
    }

    /// A message as it goes to the peer, or `None` where nothing can be sent: before the end of a
    /// handshake.
    pub fn seal(&mut self, message: Message) -> Option<Message> {
        match Sealing::default().go_on(self, &message, &mut Turn::endless()) {
            Poll::Ready(sealed) => sealed,
            Poll::Pending => None,
        }
    }

    /// Nothing can be sent yet: the handshake is not done.
    pub fn is_mute(&self) -> bool {
        matches!(self, Coding::Noise(noise) if noise.is_mute())
    }

    /// Whether anything is done to messages of this kind.
    pub fn changes(&self, kind: Kind) -> bool {
        matches!(self, Coding::Noise(_)) || kind == Kind::Binary
    }

    /// When a handshake that is not done has to be.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Coding::Snappy => None,
            Coding::Noise(noise) => noise.deadline(),
        }
    }
}
