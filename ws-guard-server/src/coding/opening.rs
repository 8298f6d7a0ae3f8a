//! Message of the peer in decoding: decryption, decompression, check.

use bytes::Bytes;

use super::{
    Coding, Opened,
    noise::{Decrypting, SNAPPY, TEXT},
    snappy::Unpacking,
};
use crate::{
    protocol::{Kind, Message, ProtocolError, utf8},
    turn::{SLICE, Turn},
};

/// Cost of checking text, in addition to decompressing it.
const CHECKING: usize = 8;

/// Progress of decoding.
#[derive(Debug)]
pub struct Opening {
    message: Message,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    New,
    Decrypting(Decrypting),
    Unpacking(Unpacking),
    Checking(usize, utf8::Incremental),
    Done,
}

impl Opening {
    /// Begin with a message as received.
    pub fn new(message: Message) -> Opening {
        Opening { message, stage: Stage::New }
    }

    /// Continue; return the decoded message, or `None` when the turn is over.
    /// It may be at most `max` bytes, decompressed.
    pub fn go_on(
        &mut self,
        coding: &mut Coding,
        max: usize,
        turn: &mut Turn,
    ) -> Result<Option<Opened>, ProtocolError> {
        loop {
            let payload = &mut self.message.payload;
            match (&mut self.stage, &mut *coding) {
                (Stage::New, Coding::Snappy) if self.message.kind == Kind::Text => {
                    self.stage = Stage::Done;
                }
                (Stage::New, Coding::Snappy) => {
                    self.stage = Stage::Unpacking(Unpacking::new(std::mem::take(payload), max)?);
                }
                (Stage::New, Coding::Noise(noise)) => match noise.receive(&self.message)? {
                    Some(answer) => return Ok(Some(Opened::Answer(answer))),
                    None => self.stage = Stage::Decrypting(Decrypting::default()),
                },
                (Stage::Decrypting(progress), Coding::Noise(noise)) => {
                    if !noise.decrypt(payload, progress, turn)? {
                        return Ok(None);
                    }
                    let (kind, bytes) = progress.take().ok_or(ProtocolError::Encryption)?;
                    self.decrypted(kind, bytes.into(), max)?;
                }
                (Stage::Decrypting(_), Coding::Snappy) => return Err(ProtocolError::Encryption),
                (Stage::Unpacking(unpacking), _) => {
                    if !unpacking.go_on(turn)? {
                        return Ok(None);
                    }
                    *payload = unpacking.take();
                    self.check();
                }
                (Stage::Checking(at, text), _) => {
                    while *at < payload.len() {
                        if turn.is_over() {
                            return Ok(None);
                        }
                        let rest = payload.get(*at..).unwrap_or_default();
                        let part = rest.get(..SLICE).unwrap_or(rest);
                        text.push(part)?;
                        *at += part.len();
                        turn.spend(part.len() / CHECKING);
                    }
                    text.finish()?;
                    self.stage = Stage::Done;
                }
                (Stage::Done, _) => {
                    let payload = std::mem::take(payload);
                    let message = Message { payload, ..self.message };
                    return Ok(Some(Opened::Message(message)));
                }
            }
        }
    }

    fn decrypted(&mut self, kind: u8, bytes: Bytes, max: usize) -> Result<(), ProtocolError> {
        self.message.kind = match kind & !SNAPPY {
            0 => Kind::Binary,
            TEXT => Kind::Text,
            _ => return Err(ProtocolError::Encryption),
        };
        if kind & SNAPPY != 0 {
            self.message.payload = Bytes::new();
            self.stage = Stage::Unpacking(Unpacking::new(bytes, max)?);
        } else {
            self.message.payload = bytes;
            self.check();
        }
        Ok(())
    }

    /// Begin the check of text, if that is all that is left to do.
    fn check(&mut self) {
        self.stage = match self.message.kind {
            Kind::Text => Stage::Checking(0, utf8::Incremental::default()),
            Kind::Binary => Stage::Done,
        };
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        let more = match &self.stage {
            Stage::Decrypting(progress) => progress.held(),
            Stage::Unpacking(progress) => progress.held(),
            Stage::New | Stage::Checking(..) | Stage::Done => 0,
        };
        self.message.payload.len() + more
    }
}
