//! Messages encrypted with AES-GCM, under keys from a Noise handshake.
//!
//! The handshake is `Noise_NX_25519_AESGCM_SHA256` (noiseprotocol.org, rev. 34), by the crate
//! `snow`. The client's first two messages are the handshake's, `e` from it and `e, ee, s, es` to
//! it, binary and with empty payloads; the prologue is the protocol's name as in the response. The
//! client learns the server's key by that, and has to know which one to expect.
//!
//! After it every message is binary, and a sequence of Noise messages: each but the last is 65,535
//! bytes, the maximum. The first byte of each, encrypted with it, tells whether it is the last and
//! what the whole is, so that messages cannot be cut or joined on the way. Every 65,536 Noise
//! messages a direction has a new key (11.3).

use std::{fmt, time::Instant};

use bytes::Bytes;
use snow::{Builder, HandshakeState, TransportState};

use crate::{
    negotiation::Choice,
    noise_key::NoiseKey,
    pool,
    protocol::{Kind, Message, ProtocolError},
    turn::Turn,
};

/// Name of the handshake, which a client has to use as well.
pub const PATTERN: &str = "Noise_NX_25519_AESGCM_SHA256";
/// Maximum length of a Noise message in bytes.
pub const MAX_NOISE: usize = 65_535;
/// Length of the authentication tag in bytes.
const TAG: usize = 16;
/// Maximum number of message bytes in a Noise message.
const MAX_PART: usize = MAX_NOISE - TAG - 1;
/// Number of Noise messages under one key.
const REKEY: u64 = if cfg!(test) { 100 } else { 1 << 16 };

/// Flag in the first byte: nothing of the message follows.
pub const LAST: u8 = 1;
/// Flag of a text message.
pub const TEXT: u8 = 2;
/// Flag of a message that is a Snappy block.
pub const SNAPPY: u8 = 4;

/// Encryption of one connection.
pub struct Noise {
    state: State,
    /// `true` if outgoing messages are compressed first.
    compress: bool,
    deadline: Instant,
}

enum State {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    /// Failure, after which nothing can be read.
    Broken,
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noise").field("compress", &self.compress).finish_non_exhaustive()
    }
}

impl Noise {
    /// Create the server's side, before its handshake.
    pub fn new(key: Option<&NoiseKey>, choice: &Choice, deadline: Instant) -> Noise {
        let state = key.and_then(|key| responder(key, &choice.protocol).ok());
        let state = state.map_or(State::Broken, |state| State::Handshake(Box::new(state)));
        Noise { state, compress: choice.features.compression, deadline }
    }

    pub fn deadline(&self) -> Option<Instant> {
        matches!(self.state, State::Handshake(_)).then_some(self.deadline)
    }

    /// Process a message before decryption; return the answer to one of the handshake.
    pub fn receive(&mut self, message: &Message) -> Result<Option<Message>, ProtocolError> {
        let answer = match std::mem::replace(&mut self.state, State::Broken) {
            _ if message.kind == Kind::Text => None,
            State::Handshake(state) => self.shake(*state, &message.payload),
            State::Transport(state) => {
                self.state = State::Transport(state);
                return Ok(None);
            }
            State::Broken => None,
        };
        answer.map(Some).ok_or(ProtocolError::Encryption)
    }

    /// Continue decrypting a message, the same until done; return whether it is done.
    /// Otherwise the turn is over.
    pub fn decrypt(
        &mut self,
        message: &[u8],
        progress: &mut Decrypting,
        turn: &mut Turn,
    ) -> Result<bool, ProtocolError> {
        let State::Transport(state) = &mut self.state else {
            return Err(ProtocolError::Encryption);
        };
        progress.go_on(state, message, turn).ok_or(ProtocolError::Encryption)
    }

    /// Check whether outgoing messages are compressed first.
    pub fn compresses(&self) -> bool {
        self.compress
    }

    /// Check whether nothing can be sent, because the handshake is pending.
    pub fn is_mute(&self) -> bool {
        !matches!(self.state, State::Transport(_))
    }

    /// Continue encrypting a message, the same until done; return the result.
    /// `None`: the turn is over. `kind` is that of the message, and whether it was compressed.
    pub fn encrypt(
        &mut self,
        message: &[u8],
        kind: u8,
        progress: &mut Encrypting,
        turn: &mut Turn,
    ) -> Option<Result<Bytes, ProtocolError>> {
        let State::Transport(state) = &mut self.state else {
            return Some(Err(ProtocolError::Encryption));
        };
        match progress.go_on(state, message, kind, turn) {
            Some(true) => Some(Ok(std::mem::take(&mut progress.sealed).into())),
            Some(false) => None,
            None => Some(Err(ProtocolError::Encryption)),
        }
    }

    /// Process the client's half of the handshake, and return ours.
    fn shake(&mut self, mut state: HandshakeState, theirs: &[u8]) -> Option<Message> {
        let mut buffer = [0; 256];
        let payload = state.read_message(theirs, &mut buffer).ok()?;
        if payload > 0 {
            return None;
        }
        let len = state.write_message(&[], &mut buffer).ok()?;
        let payload = Bytes::copy_from_slice(buffer.get(..len)?);
        self.state = State::Transport(Box::new(state.into_transport_mode().ok()?));
        Some(Message { kind: Kind::Binary, payload })
    }
}

fn responder(key: &NoiseKey, protocol: &str) -> Result<HandshakeState, snow::Error> {
    Builder::new(PATTERN.parse()?)
        .local_private_key(&key.private)?
        .prologue(protocol.as_bytes())?
        .build_responder()
}

/// Progress of decrypting a message.
#[derive(Debug, Default)]
pub struct Decrypting {
    taken: usize,
    /// Flags in the first byte of each part.
    kind: Option<u8>,
    bytes: Vec<u8>,
}

impl Decrypting {
    /// Decrypt part by part; `false` when the turn is over, `None` on failure.
    fn go_on(
        &mut self,
        state: &mut TransportState,
        message: &[u8],
        turn: &mut Turn,
    ) -> Option<bool> {
        let mut scratch = pool::borrow_write();
        scratch.resize(message.len().min(MAX_NOISE), 0);
        while self.taken < message.len() && !turn.is_over() {
            let rest = message.get(self.taken..)?;
            let part = rest.get(..MAX_NOISE).unwrap_or(rest);
            let len = state.read_message(part, &mut scratch).ok()?;
            let (flags, bytes) = scratch.get(..len)?.split_first()?;
            let last = part.len() == rest.len();
            let same = self.kind.is_none_or(|kind| kind == flags & !LAST);
            if last != (flags & LAST != 0) || !same {
                return None;
            }
            self.kind = Some(flags & !LAST);
            self.bytes.extend_from_slice(bytes);
            self.taken += part.len();
            turn.spend(part.len());
            if state.receiving_nonce().is_multiple_of(REKEY) {
                state.rekey_incoming();
            }
        }
        pool::return_write(&mut scratch);
        Some(self.taken == message.len())
    }

    /// Take the decrypted message: its kind, and its bytes.
    pub fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        Some((self.kind?, std::mem::take(&mut self.bytes)))
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Progress of encrypting a message.
#[derive(Debug, Default)]
pub struct Encrypting {
    taken: usize,
    sealed: Vec<u8>,
}

impl Encrypting {
    /// Encrypt part by part; `false` when the turn is over, `None` on failure.
    fn go_on(
        &mut self,
        state: &mut TransportState,
        message: &[u8],
        kind: u8,
        turn: &mut Turn,
    ) -> Option<bool> {
        let mut scratch = pool::borrow_write();
        let mut done = false;
        while !done && !turn.is_over() {
            let rest = message.get(self.taken..)?;
            let part = rest.get(..MAX_PART).unwrap_or(rest);
            done = part.len() == rest.len();
            scratch.clear();
            scratch.push(if done { kind | LAST } else { kind });
            scratch.extend_from_slice(part);
            let at = self.sealed.len();
            self.sealed.resize(at + scratch.len() + TAG, 0);
            let len = state.write_message(&scratch, self.sealed.get_mut(at..)?).ok()?;
            self.sealed.truncate(at + len);
            self.taken += part.len();
            turn.spend(part.len());
            if state.sending_nonce().is_multiple_of(REKEY) {
                state.rekey_outgoing();
            }
        }
        pool::return_write(&mut scratch);
        Some(done)
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.sealed.capacity()
    }
}

/// Decrypt a whole message: return its kind, and its bytes.
pub fn read(state: &mut TransportState, message: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut progress = Decrypting::default();
    progress.go_on(state, message, &mut Turn::endless())?;
    progress.take()
}

/// Encrypt a whole message of this kind.
pub fn write(state: &mut TransportState, message: &[u8], kind: u8) -> Option<Vec<u8>> {
    let mut progress = Encrypting::default();
    progress.go_on(state, message, kind, &mut Turn::endless())?;
    Some(progress.sealed)
}

#[cfg(test)]
mod tests;
