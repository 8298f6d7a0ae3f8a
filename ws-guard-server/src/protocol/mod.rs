//! RFC 6455 and RFC 7692 without a socket: bytes in, events out.
//!
//! [`decoder`] takes frames out of a buffer in which it unmasks them in place, [`encoder`]
//! writes them, [`deflate`] is permessage-deflate and [`extension`] its negotiation. Nothing here
//! waits, allocates per frame, or depends on a connection.

pub mod close;
pub mod decoder;
pub mod deflate;
pub mod encoder;
pub mod extension;
pub mod mask;
pub mod utf8;

pub use close::{Close, code};
pub use decoder::{Chunk, Decoder, Event, Kind, Limits, Message, Role};

use ws_guard_common::frame::Violation;

/// Reason why a stream cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A header that RFC 6455 does not allow.
    #[error("frame header: {}", .0.name())]
    Header(Violation),
    /// A close frame with a payload of one byte (5.5.1).
    #[error("close frame with half a status code")]
    CloseTruncated,
    /// A close frame with a status code that must not be sent (7.4).
    #[error("close frame with the status code {0}")]
    CloseCode(u16),
    /// Text, or the reason of a close frame, that is not UTF-8 (8.1).
    #[error("text that is not UTF-8")]
    Utf8,
    /// A message over [`Limits::message`] bytes, compressed or not.
    #[error("message too big")]
    TooBig,
    /// A message in more than [`Limits::fragments`] frames.
    #[error("message in too many fragments")]
    TooManyFragments,
    /// A compressed message that is not valid DEFLATE data (RFC 7692, 7.2.2).
    #[error("corrupt compressed message")]
    Deflate,
    /// A message that is not valid Snappy data, where that was agreed.
    #[error("corrupt Snappy block")]
    Snappy,
    /// A message not encrypted as agreed, or a failed handshake for that.
    #[error("encryption failed")]
    Encryption,
}

impl ProtocolError {
    /// Return the status code for the peer (RFC 6455, 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            ProtocolError::Header(_)
            | ProtocolError::CloseTruncated
            | ProtocolError::CloseCode(_)
            | ProtocolError::Encryption => code::PROTOCOL_ERROR,
            ProtocolError::Utf8 | ProtocolError::Deflate | ProtocolError::Snappy => {
                code::INVALID_PAYLOAD
            }
            ProtocolError::TooBig => code::TOO_BIG,
            ProtocolError::TooManyFragments => code::POLICY_VIOLATION,
        }
    }

    /// Return all values of [`ProtocolError::name`].
    pub fn names() -> impl Iterator<Item = &'static str> {
        let others = [
            ProtocolError::CloseTruncated,
            ProtocolError::CloseCode(0),
            ProtocolError::Utf8,
            ProtocolError::TooBig,
            ProtocolError::TooManyFragments,
            ProtocolError::Deflate,
            ProtocolError::Snappy,
            ProtocolError::Encryption,
        ];
        let headers = Violation::ALL.into_iter().map(ProtocolError::Header);
        headers.chain(others).map(ProtocolError::name)
    }

    /// Return the name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            ProtocolError::Header(violation) => violation.name(),
            ProtocolError::CloseTruncated => "close_truncated",
            ProtocolError::CloseCode(_) => "close_code",
            ProtocolError::Utf8 => "utf8",
            ProtocolError::TooBig => "too_big",
            ProtocolError::TooManyFragments => "too_many_fragments",
            ProtocolError::Deflate => "deflate",
            ProtocolError::Snappy => "snappy",
            ProtocolError::Encryption => "encryption",
        }
    }
}
