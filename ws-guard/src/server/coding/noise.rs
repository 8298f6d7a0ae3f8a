//! Messages encrypted with AES-GCM, under keys from a Noise handshake (noiseprotocol.org, rev. 34):
//! `Noise_NX_25519_AESGCM_SHA256`, done by the crate `snow`.
//!
//! The client's first two messages are the handshake's, `e` from it and `e, ee, s, es` to it, binary
//! and with empty payloads; the prologue is the name of the protocol as the response has it. The
//! client learns the server's key by that, and has to know which one to expect.
//!
//! After it every message is binary, and a row of Noise messages one behind the other: each but the
//! last is 65,535 bytes, the most that there can be. The first byte of each, encrypted with it, says
//! whether it is the last and what the whole is, so that nobody on the way can cut or join messages.
//! Every 65,536 Noise messages a direction has a new key (11.3).

use std::{fmt, path::Path, time::Instant};

use bytes::Bytes;
use snow::{
    Builder, HandshakeState, TransportState,
    params::DHChoice,
    resolvers::{CryptoResolver, DefaultResolver},
};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use super::{Opened, snappy};
use crate::server::{
    negotiation::Choice,
    pool,
    protocol::{Kind, Message, ProtocolError, utf8},
};

/// The handshake's name, which a client has to use as well.
pub const PATTERN: &str = "Noise_NX_25519_AESGCM_SHA256";
/// Largest Noise message in bytes.
pub const MAX_NOISE: usize = 65_535;
/// Authentication tag, in bytes.
const TAG: usize = 16;
/// Most bytes of a message in a Noise message.
const MAX_PART: usize = MAX_NOISE - TAG - 1;
/// Noise messages under one key.
const REKEY: u64 = if cfg!(test) { 100 } else { 1 << 16 };

/// Of the byte in front: nothing of the message follows.
pub const LAST: u8 = 1;
/// The message is text.
pub const TEXT: u8 = 2;
/// The message is a block of Snappy.
pub const SNAPPY: u8 = 4;

/// The server's static key, X25519.
#[derive(Clone)]
pub struct NoiseKey {
    private: [u8; 32],
    public: [u8; 32],
}

impl fmt::Debug for NoiseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoiseKey").field("public", &self.public_hex()).finish_non_exhaustive()
    }
}

/// Why a file is no such key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("it cannot be read as PEM ({0})")]
    Pem(#[from] tokio_rustls::rustls::pki_types::pem::Error),
    #[error("it is no X25519 key; make one with `openssl genpkey -algorithm x25519`")]
    NotX25519,
}

/// A private X25519 key in PKCS #8, up to the key itself (RFC 8410, 7 and 10.3).
const PKCS8: [u8; 16] = [0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x6E, 4, 0x22, 4, 0x20];

impl NoiseKey {
    /// Read a private key in PEM, as `openssl genpkey -algorithm x25519` makes it.
    pub fn from_file(path: &Path) -> Result<NoiseKey, KeyError> {
        let key = PrivateKeyDer::from_pem_file(path)?;
        let private = key.secret_der().strip_prefix(&PKCS8).ok_or(KeyError::NotX25519)?;
        let private = private.try_into().map_err(|_| KeyError::NotX25519)?;
        NoiseKey::from_private(private).ok_or(KeyError::NotX25519)
    }

    /// From the private key's 32 bytes.
    pub fn from_private(private: [u8; 32]) -> Option<NoiseKey> {
        let mut curve = DefaultResolver.resolve_dh(&DHChoice::Curve25519)?;
        curve.set(&private);
        let public = curve.pubkey().try_into().ok()?;
        Some(NoiseKey { private, public })
    }

    /// What clients have to know.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The same in hexadecimal digits.
    pub fn public_hex(&self) -> String {
        self.public.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// One connection's encryption.
pub struct Noise {
    state: State,
    /// What is sent is compressed first.
    compress: bool,
    deadline: Instant,
}

enum State {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    /// Nothing can be read any more.
    Broken,
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noise").field("compress", &self.compress).finish_non_exhaustive()
    }
}

impl Noise {
    /// The server's side, before its handshake.
    pub fn new(key: Option<&NoiseKey>, choice: &Choice, deadline: Instant) -> Noise {
        let state = key.and_then(|key| responder(key, &choice.protocol).ok());
        let state = state.map_or(State::Broken, |state| State::Handshake(Box::new(state)));
        Noise { state, compress: choice.features.compression, deadline }
    }

    pub fn deadline(&self) -> Option<Instant> {
        matches!(self.state, State::Handshake(_)).then_some(self.deadline)
    }

    /// A message of the client.
    pub fn open(&mut self, message: &Message, max: usize) -> Result<Opened, ProtocolError> {
        let opened = match std::mem::replace(&mut self.state, State::Broken) {
            _ if message.kind == Kind::Text => None,
            State::Handshake(state) => self.shake(*state, &message.payload),
            State::Transport(mut state) => {
                let opened = read(&mut state, &message.payload);
                self.state = State::Transport(state);
                return plain(opened.ok_or(ProtocolError::Encryption)?, max);
            }
            State::Broken => None,
        };
        opened.ok_or(ProtocolError::Encryption)
    }

    /// The client's half of the handshake, and ours as the answer.
    fn shake(&mut self, mut state: HandshakeState, theirs: &[u8]) -> Option<Opened> {
        let mut buffer = [0; 256];
        let payload = state.read_message(theirs, &mut buffer).ok()?;
        if payload > 0 {
            return None;
        }
        let len = state.write_message(&[], &mut buffer).ok()?;
        let payload = Bytes::copy_from_slice(buffer.get(..len)?);
        self.state = State::Transport(Box::new(state.into_transport_mode().ok()?));
        Some(Opened::Answer(Message { kind: Kind::Binary, payload }))
    }

    /// A message for the client; none can be sent before the handshake is done.
    pub fn seal(&mut self, message: &Message) -> Option<Message> {
        let State::Transport(state) = &mut self.state else { return None };
        let text = if message.kind == Kind::Text { TEXT } else { 0 };
        let payload = if self.compress {
            write(state, &snappy::compress(&message.payload), text | SNAPPY)
        } else {
            write(state, &message.payload, text)
        };
        Some(Message { kind: Kind::Binary, payload: payload?.into() })
    }
}

fn responder(key: &NoiseKey, protocol: &str) -> Result<HandshakeState, snow::Error> {
    Builder::new(PATTERN.parse()?)
        .local_private_key(&key.private)?
        .prologue(protocol.as_bytes())?
        .build_responder()
}

/// Decrypt the Noise messages of a message: what kind it is, and its bytes.
pub fn read(state: &mut TransportState, message: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(message.len());
    let mut scratch = pool::borrow_write();
    scratch.resize(message.len().min(MAX_NOISE), 0);
    let mut parts = message.chunks(MAX_NOISE).peekable();
    let mut kind = None;
    while let Some(part) = parts.next() {
        let len = state.read_message(part, &mut scratch).ok()?;
        let (flags, part) = scratch.get(..len)?.split_first()?;
        let last = parts.peek().is_none();
        let same = kind.is_none_or(|kind| kind == flags & !LAST);
        if last != (flags & LAST != 0) || !same {
            return None;
        }
        kind = Some(flags & !LAST);
        bytes.extend_from_slice(part);
        if state.receiving_nonce().is_multiple_of(REKEY) {
            state.rekey_incoming();
        }
    }
    pool::return_write(&mut scratch);
    Some((kind?, bytes))
}

/// Encrypt a message of this kind.
pub fn write(state: &mut TransportState, message: &[u8], kind: u8) -> Option<Vec<u8>> {
    let parts = message.len().div_ceil(MAX_PART).max(1);
    let mut sealed = vec![0; message.len() + parts * (1 + TAG)];
    let mut scratch = pool::borrow_write();
    let (mut rest, mut at) = (message, 0);
    for number in 1..=parts {
        let (part, behind) = rest.split_at(rest.len().min(MAX_PART));
        rest = behind;
        scratch.clear();
        scratch.push(if number == parts { kind | LAST } else { kind });
        scratch.extend_from_slice(part);
        at += state.write_message(&scratch, sealed.get_mut(at..)?).ok()?;
        if state.sending_nonce().is_multiple_of(REKEY) {
            state.rekey_outgoing();
        }
    }
    pool::return_write(&mut scratch);
    Some(sealed)
}

/// What was inside, checked like any message.
fn plain((kind, bytes): (u8, Vec<u8>), max: usize) -> Result<Opened, ProtocolError> {
    let payload = match kind & SNAPPY {
        0 => Bytes::from(bytes),
        _ => snappy::decompress(&bytes, max)?,
    };
    let kind = match kind & !SNAPPY {
        0 => Kind::Binary,
        TEXT => Kind::Text,
        _ => return Err(ProtocolError::Encryption),
    };
    if kind == Kind::Text {
        utf8::check(&payload)?;
    }
    Ok(Opened::Message(Message { kind, payload }))
}

#[cfg(test)]
mod tests;
