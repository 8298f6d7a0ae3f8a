//! Layout of the header before a body.

use bytes::{BufMut, BytesMut};

use super::PacketError;

/// A header of fixed size with the body's length in it.
pub trait Layout {
    /// Size in bytes.
    const HEADER: usize;

    /// The body's length in bytes, or `None` while `head`, the header as far as it has come, does
    /// not say. What has come is checked.
    fn length(head: &[u8]) -> Result<Option<usize>, PacketError>;

    /// Write a header for a body of this length.
    fn write(length: u32, out: &mut BytesMut);
}

/// Magic 0x1234, version 1, and the body's length in 32 bits: 7 bytes, all big-endian.
#[derive(Clone, Copy, Debug)]
pub enum FixedHeader {}

impl FixedHeader {
    const MAGIC: [u8; 2] = 0x1234u16.to_be_bytes();
    const VERSION: u8 = 1;
}

impl Layout for FixedHeader {
    const HEADER: usize = 7;

    fn length(head: &[u8]) -> Result<Option<usize>, PacketError> {
        magic(&FixedHeader::MAGIC, head, 0)?;
        match head.get(2) {
            Some(&version) if version != FixedHeader::VERSION => Err(PacketError::Version(version)),
            _ => Ok(number(head, 3)),
        }
    }

    fn write(length: u32, out: &mut BytesMut) {
        out.extend_from_slice(&FixedHeader::MAGIC);
        out.put_u8(FixedHeader::VERSION);
        out.put_u32(length);
    }
}

/// The body's length in 32 bits, big-endian, and nothing else.
#[derive(Clone, Copy, Debug)]
pub enum LengthPrefix {}

impl Layout for LengthPrefix {
    const HEADER: usize = 4;

    fn length(head: &[u8]) -> Result<Option<usize>, PacketError> {
        Ok(number(head, 0))
    }

    fn write(length: u32, out: &mut BytesMut) {
        out.put_u32(length);
    }
}

/// The body's length in 32 bits and the magic 0xCAFEBABE, which the length does not count: 8 bytes,
/// both big-endian.
#[derive(Clone, Copy, Debug)]
pub enum LengthMagic {}

impl LengthMagic {
    const MAGIC: [u8; 4] = 0xCAFE_BABEu32.to_be_bytes();
}

impl Layout for LengthMagic {
    const HEADER: usize = 8;

    fn length(head: &[u8]) -> Result<Option<usize>, PacketError> {
        magic(&LengthMagic::MAGIC, head, 4)?;
        // A length is not believed before the magic confirms that the stream is in step.
        Ok(if head.len() < Self::HEADER { None } else { number(head, 0) })
    }

    fn write(length: u32, out: &mut BytesMut) {
        out.put_u32(length);
        out.extend_from_slice(&LengthMagic::MAGIC);
    }
}

/// Compare what has arrived of a magic number at `offset`.
fn magic(expected: &[u8], head: &[u8], offset: usize) -> Result<(), PacketError> {
    let there = head.get(offset..).unwrap_or_default();
    let wrong = expected.iter().zip(there).position(|(expected, found)| expected != found);
    match wrong.and_then(|at| Some((at, *there.get(at)?, *expected.get(at)?))) {
        Some((at, found, expected)) => {
            Err(PacketError::Magic { offset: offset + at, found, expected })
        }
        None => Ok(()),
    }
}

/// The 32 bit number at `offset`, if it has come.
fn number(head: &[u8], offset: usize) -> Option<usize> {
    let bytes = head.get(offset..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(*bytes)).ok()
}
