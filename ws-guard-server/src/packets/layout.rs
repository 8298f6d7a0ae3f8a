//! Layouts of the header before a body.

use bytes::{BufMut, BytesMut};

use super::PacketError;

/// Header of fixed size that includes the body's length.
pub trait Layout {
    /// Size of the header in bytes.
    const HEADER: usize;

    /// Check a header as far as it has come, and return the body's length in bytes.
    /// `None`: the length has not come yet.
    fn length(head: &[u8]) -> Result<Option<usize>, PacketError>;

    /// Write a header for a body of this length.
    fn write(length: u32, out: &mut BytesMut);
}

/// Layout with magic 0x1234, version 1, 32-bit body length: 7 bytes, big-endian.
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

/// Layout with a 32-bit body length only, big-endian.
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

/// Layout with a 32-bit body length and the magic 0xCAFEBABE: 8 bytes, big-endian.
/// The length does not count the magic.
#[derive(Clone, Copy, Debug)]
pub enum LengthMagic {}

impl LengthMagic {
    const MAGIC: [u8; 4] = 0xCAFE_BABEu32.to_be_bytes();
}

impl Layout for LengthMagic {
    const HEADER: usize = 8;

    fn length(head: &[u8]) -> Result<Option<usize>, PacketError> {
        magic(&LengthMagic::MAGIC, head, 4)?;
        // A length is not accepted before the magic confirms that the stream is in sync.
        Ok(if head.len() < Self::HEADER { None } else { number(head, 0) })
    }

    fn write(length: u32, out: &mut BytesMut) {
        out.put_u32(length);
        out.extend_from_slice(&LengthMagic::MAGIC);
    }
}

/// Compare the received part of a magic number at `offset`.
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

/// Return the 32-bit number at `offset`, if received.
fn number(head: &[u8], offset: usize) -> Option<usize> {
    let bytes = head.get(offset..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(*bytes)).ok()
}
