//! Length-prefixed binary protocols, on TCP streams or in WebSocket messages.
//!
//! A [`Layout`] describes the header before the body. [`Packets`] uses it to cut a stream into
//! bodies, as a `tokio_util` codec, and [`single`] takes the one body out of a whole message. A
//! header is checked as far as it has come, so that a loss of sync is noticed at its first wrong
//! byte, and a length before any memory is allocated for it.

mod layout;
mod protobuf;

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

pub use layout::{FixedHeader, Layout, LengthMagic, LengthPrefix};
pub use protobuf::Protobuf;

/// Default maximum length of a body in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Invalid packet; after an error a stream cannot be assumed to be in sync.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error(
        "byte {offset} of a packet is {found:#04x} instead of {expected:#04x}: is the stream out of sync?"
    )]
    Magic { offset: usize, found: u8, expected: u8 },
    #[error("packet of version {0}: only version 1 is known")]
    Version(u8),
    #[error("body of {length} bytes: at most {most} are allowed")]
    TooLong { length: usize, most: usize },
    /// End of the stream or message inside a packet.
    #[error("a packet ends after {there} of {wanted} bytes")]
    Truncated { there: usize, wanted: usize },
    /// Bytes of a message after its packet.
    #[error("{0} bytes behind the packet that a message holds")]
    Trailing(usize),
    #[error("body that is not the message it should be: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Codec that cuts a stream into bodies, and puts headers before bodies.
#[derive(Clone, Copy, Debug)]
pub struct Packets<L> {
    most: usize,
    layout: PhantomData<L>,
}

impl<L> Packets<L> {
    /// Create a codec for bodies of at most `most` bytes, both ways.
    pub const fn new(most: usize) -> Packets<L> {
        Packets { most, layout: PhantomData }
    }

    fn check(&self, length: usize) -> Result<(), PacketError> {
        if length > self.most {
            return Err(PacketError::TooLong { length, most: self.most });
        }
        Ok(())
    }
}

impl<L> Default for Packets<L> {
    fn default() -> Packets<L> {
        Packets::new(MAX_BODY)
    }
}

impl<L: Layout> Decoder for Packets<L> {
    type Item = Bytes;
    type Error = PacketError;

    fn decode(&mut self, stream: &mut BytesMut) -> Result<Option<Bytes>, PacketError> {
        let head = stream.get(..L::HEADER).unwrap_or(stream);
        let Some(length) = L::length(head)? else { return Ok(None) };
        self.check(length)?;
        if stream.len() - L::HEADER < length {
            return Ok(None);
        }
        stream.advance(L::HEADER);
        Ok(Some(stream.split_to(length).freeze()))
    }

    fn decode_eof(&mut self, stream: &mut BytesMut) -> Result<Option<Bytes>, PacketError> {
        if let Some(body) = self.decode(stream)? {
            return Ok(Some(body));
        }
        if stream.is_empty() {
            return Ok(None);
        }
        let body = L::length(stream.get(..L::HEADER).unwrap_or(stream))?.unwrap_or(0);
        Err(PacketError::Truncated { there: stream.len(), wanted: L::HEADER + body })
    }
}

impl<L: Layout, B: AsRef<[u8]>> Encoder<B> for Packets<L> {
    type Error = PacketError;

    fn encode(&mut self, body: B, out: &mut BytesMut) -> Result<(), PacketError> {
        let body = body.as_ref();
        self.check(body.len())?;
        let too_long = |_| PacketError::TooLong { length: body.len(), most: u32::MAX as usize };
        let length = u32::try_from(body.len()).map_err(too_long)?;
        out.reserve(L::HEADER + body.len());
        L::write(length, out);
        out.extend_from_slice(body);
        Ok(())
    }
}

/// Return the body of the one packet that is the whole `message`.
pub fn single<L: Layout>(packets: &mut Packets<L>, message: Bytes) -> Result<Bytes, PacketError> {
    let mut stream = BytesMut::from(message);
    let wanted = L::HEADER;
    let body = packets.decode_eof(&mut stream)?;
    let body = body.ok_or(PacketError::Truncated { there: 0, wanted })?;
    if stream.is_empty() { Ok(body) } else { Err(PacketError::Trailing(stream.len())) }
}
