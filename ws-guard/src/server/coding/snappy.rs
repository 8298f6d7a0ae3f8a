//! Messages as blocks of Snappy (the raw format, without a frame): the block begins with its length,
//! which is checked before memory is set aside.

use bytes::Bytes;
use snap::raw::{Decoder, Encoder, decompress_len};

use crate::server::protocol::{Kind, Message, ProtocolError};

/// A copy of 64 bytes takes 3 of the block, so that no honest block is denser than this.
const DENSEST: usize = 22;

/// Decompress a binary message into at most `max` bytes; text is handed on as it is.
pub fn open(message: Message, max: usize) -> Result<Message, ProtocolError> {
    if message.kind == Kind::Text {
        return Ok(message);
    }
    let payload = decompress(&message.payload, max)?;
    Ok(Message { payload, ..message })
}

/// Compress a binary message.
pub fn seal(message: Message) -> Message {
    if message.kind == Kind::Text {
        return message;
    }
    let payload = compress(&message.payload);
    Message { payload, ..message }
}

/// A block of at most `max` bytes, decompressed.
pub fn decompress(block: &[u8], max: usize) -> Result<Bytes, ProtocolError> {
    let len = decompress_len(block).map_err(|_| ProtocolError::Snappy)?;
    if len > max {
        return Err(ProtocolError::TooBig);
    }
    if len > block.len().saturating_mul(DENSEST) {
        return Err(ProtocolError::Snappy);
    }
    let decompressed = Decoder::new().decompress_vec(block);
    decompressed.map(Bytes::from).map_err(|_| ProtocolError::Snappy)
}

/// A block.
pub fn compress(bytes: &[u8]) -> Bytes {
    // It fails for more than 4 GiB, which no message is.
    Encoder::new().compress_vec(bytes).map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(payload: impl Into<Bytes>) -> Message {
        Message { kind: Kind::Binary, payload: payload.into() }
    }

    #[test]
    fn there_and_back() {
        for size in [0, 1, 100, 65_535, 65_536, 300_000] {
            let payload: Vec<u8> = (0..size).map(|i: u32| (i / 100) as u8).collect();
            let sealed = seal(binary(payload.clone()));
            assert!(size < 1000 || sealed.payload.len() < size as usize / 5);
            assert_eq!(open(sealed, payload.len()).unwrap(), binary(payload));
        }
        let text = Message { kind: Kind::Text, payload: "text".into() };
        assert_eq!(open(seal(text.clone()), 4).unwrap(), text);
    }

    /// As in the format's own description: length, literals, and a copy that overlaps itself.
    #[test]
    fn a_block_by_hand() {
        let block = [&[9, 0x08][..], b"abc", &[0x09, 3]].concat();
        assert_eq!(decompress(&block, 9).unwrap(), "abcabcabc");
    }

    #[test]
    fn what_it_would_become_is_checked_first() {
        let sealed = compress(&[7; 10_000]);
        assert_eq!(decompress(&sealed, 9_999), Err(ProtocolError::TooBig));
        // 4 GiB and 16 MiB in five bytes.
        assert_eq!(
            decompress(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F], 16 << 20),
            Err(ProtocolError::TooBig)
        );
        assert_eq!(decompress(&[0x80, 0x80, 0x80, 0x08, 0], 16 << 20), Err(ProtocolError::Snappy));
        assert!(
            compress(&vec![7; 1 << 20]).len() * DENSEST > 1 << 20,
            "no honest block is refused"
        );
        for rubbish in [&b""[..], b"\x05a", b"\xFF\xFF\xFF\xFF\xFF\xFF", b"\x03\x09\x09\x09"] {
            assert_eq!(decompress(rubbish, 1000), Err(ProtocolError::Snappy), "{rubbish:?}");
        }
    }
}
