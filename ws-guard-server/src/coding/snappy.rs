//! Messages as Snappy blocks (raw format, without framing).
//! A block begins with its length, which is checked before memory is allocated.

use bytes::Bytes;
use snap::raw::{Encoder, decompress_len};

use crate::{
    protocol::ProtocolError,
    turn::{SLICE, Turn},
};

/// Maximum expansion of an honest block: a copy of 64 bytes takes 3 of the block.
const DENSEST: usize = 22;
/// Size of pieces compressed independently: nothing in a block refers across them.
const PIECE: usize = 1 << 16;

/// Message in compression into a block, a piece in a turn.
#[derive(Debug, Default)]
pub struct Packing {
    taken: usize,
    block: Vec<u8>,
}

impl Packing {
    /// Continue with a message, the same until done; `false`: the turn is over.
    pub fn go_on(&mut self, message: &[u8], turn: &mut Turn) -> bool {
        if self.block.is_empty() {
            put_length(message.len(), &mut self.block);
        }
        let mut encoder = None;
        while self.taken < message.len() {
            if turn.is_over() {
                return false;
            }
            let rest = message.get(self.taken..).unwrap_or_default();
            let piece = rest.get(..PIECE).unwrap_or(rest);
            let encoder = encoder.get_or_insert_with(Encoder::new);
            // It fails for more than 4 GiB, which no piece is.
            let packed = encoder.compress_vec(piece).unwrap_or_default();
            self.block.extend_from_slice(packed.get(length(&packed)..).unwrap_or_default());
            self.taken += piece.len();
            turn.spend(piece.len());
        }
        true
    }

    /// Return the block.
    pub fn into_block(self) -> Bytes {
        self.block.into()
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.block.capacity()
    }
}

/// Write the length in front of a block: seven bits in a byte, the lowest first.
fn put_length(mut length: usize, out: &mut Vec<u8>) {
    while length > 0x7F {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Return the number of bytes of that length.
fn length(block: &[u8]) -> usize {
    block.iter().position(|byte| byte & 0x80 == 0).map_or(block.len(), |last| last + 1)
}

/// Block in decompression.
#[derive(Debug)]
pub struct Unpacking {
    block: Bytes,
    at: usize,
    /// Number of bytes of a literal that are not copied yet.
    literal: usize,
    /// Announced length.
    len: usize,
    out: Vec<u8>,
}

impl Unpacking {
    /// Begin with a block that decompresses to at most `max` bytes.
    pub fn new(block: Bytes, max: usize) -> Result<Unpacking, ProtocolError> {
        let len = decompress_len(&block).map_err(|_| ProtocolError::Snappy)?;
        if len > max {
            return Err(ProtocolError::TooBig);
        }
        if block.is_empty() || !can_become(block.len(), len) {
            return Err(ProtocolError::Snappy);
        }
        let at = length(&block);
        Ok(Unpacking { block, at, literal: 0, len, out: Vec::new() })
    }

    /// Continue; return whether it is done, otherwise the turn is over.
    pub fn go_on(&mut self, turn: &mut Turn) -> Result<bool, ProtocolError> {
        while self.at < self.block.len() {
            if turn.is_over() {
                return Ok(false);
            }
            let (at, made) = (self.at, self.out.len());
            while self.at < self.block.len()
                && self.at - at < SLICE
                && self.out.len() - made < SLICE
            {
                self.element().ok_or(ProtocolError::Snappy)?;
            }
            turn.spend((self.at - at).max(self.out.len() - made));
        }
        let whole = self.literal == 0 && self.out.len() == self.len;
        if whole { Ok(true) } else { Err(ProtocolError::Snappy) }
    }

    /// Return the output.
    pub fn out(&self) -> &[u8] {
        &self.out
    }

    /// Take the output.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.out).into()
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.block.len() + self.out.capacity()
    }

    /// Process a literal or a copy, or a worthwhile part of a long literal.
    fn element(&mut self) -> Option<()> {
        if self.literal > 0 {
            return self.copy_literal();
        }
        let tag = usize::from(*self.block.get(self.at)?);
        self.at += 1;
        match tag & 3 {
            0 => {
                self.literal = match tag >> 2 {
                    short @ 0..60 => short + 1,
                    long => self.number(long - 59)?.checked_add(1)?,
                };
                self.copy_literal()
            }
            1 => {
                let offset = (tag >> 5) << 8 | self.number(1)?;
                self.copy(offset, 4 + (tag >> 2 & 7))
            }
            kind => {
                let offset = self.number(if kind == 2 { 2 } else { 4 })?;
                self.copy(offset, 1 + (tag >> 2))
            }
        }
    }

    /// Read a number of `bytes` bytes, little-endian.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let bytes = self.block.get(self.at..self.at + bytes)?;
        self.at += bytes.len();
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn copy_literal(&mut self) -> Option<()> {
        if self.literal > self.block.len() - self.at {
            return None;
        }
        let piece = self.literal.min(SLICE);
        self.has_room(piece)?;
        self.out.extend_from_slice(self.block.get(self.at..self.at + piece)?);
        self.at += piece;
        self.literal -= piece;
        Some(())
    }

    /// Copy bytes of the output, which may overlap with the copy.
    fn copy(&mut self, offset: usize, len: usize) -> Option<()> {
        let from = self.out.len().checked_sub(offset).filter(|_| offset > 0)?;
        self.has_room(len)?;
        let mut left = len;
        while left > 0 {
            // As much again as there is since `from`: whole turns of a repetition.
            let piece = left.min(self.out.len() - from);
            self.out.extend_from_within(from..from + piece);
            left -= piece;
        }
        Some(())
    }

    /// Check that there is room for this number of further bytes.
    fn has_room(&mut self, more: usize) -> Option<()> {
        let (made, most) = (self.out.len(), self.len);
        let left = (most - made).checked_sub(more)?;
        if self.out.capacity() - made < more {
            self.out.reserve_exact((more + left).min(more.max(made).max(SLICE)));
        }
        Some(())
    }
}

/// Decompress a whole block of at most `max` bytes.
pub fn decompress(block: &[u8], max: usize) -> Result<Bytes, ProtocolError> {
    let mut unpacking = Unpacking::new(Bytes::copy_from_slice(block), max)?;
    unpacking.go_on(&mut Turn::endless())?;
    Ok(unpacking.take())
}

/// Check whether a block of this length can become one of `len` bytes.
/// If not, no memory is allocated for it.
fn can_become(block: usize, len: usize) -> bool {
    len <= block.saturating_mul(DENSEST)
}

/// Compress a whole block.
pub fn compress(bytes: &[u8]) -> Bytes {
    let mut packing = Packing::default();
    packing.go_on(bytes, &mut Turn::endless());
    packing.into_block()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_and_back() {
        for size in [0, 1, 100, 65_535, 65_536, 65_537, 300_000] {
            let payload: Vec<u8> = (0..size).map(|i: u32| (i / 100) as u8).collect();
            let sealed = compress(&payload);
            assert!(size < 1000 || sealed.len() < size as usize / 5);
            assert_eq!(sealed, Encoder::new().compress_vec(&payload).unwrap(), "{size}");
            assert_eq!(decompress(&sealed, payload.len()).unwrap(), payload);
        }
    }

    /// As in the format's own description: length, literals, and an overlapping copy.
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
        assert!(!can_become(5, 16 << 20));
        assert!(
            can_become(compress(&vec![7; 1 << 20]).len(), 1 << 20),
            "no honest block is refused"
        );
        for rubbish in [&b""[..], b"\x05a", b"\xFF\xFF\xFF\xFF\xFF\xFF", b"\x03\x09\x09\x09"] {
            assert_eq!(decompress(rubbish, 1000), Err(ProtocolError::Snappy), "{rubbish:?}");
        }
    }

    #[test]
    fn long_blocks_take_turns() {
        let payload: Vec<u8> = (0..1_000_000u32).flat_map(|i| (i / 50).to_le_bytes()).collect();
        let (mut packing, mut turns) = (Packing::default(), 1);
        while !packing.go_on(&payload, &mut Turn::new(Instant::now())) {
            turns += 1;
        }
        assert!(turns >= payload.len() / PIECE, "{turns} turns");
        let mut unpacking = Unpacking::new(packing.into_block(), payload.len()).unwrap();
        loop {
            let before = unpacking.out().len();
            let done = unpacking.go_on(&mut Turn::new(Instant::now())).unwrap();
            assert!(unpacking.out().len() - before <= 2 * PIECE);
            if done {
                break;
            }
        }
        assert!(unpacking.take() == payload);
    }

    /// Generate blocks that begin correctly, and continue arbitrarily.
    fn blocks() -> impl Strategy<Value = Vec<u8>> {
        let honest =
            prop::collection::vec(0u8..4, 0..300).prop_map(|bytes| compress(&bytes).into());
        let element = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..60)
                .prop_map(|bytes| { [&[(bytes.len() as u8 - 1) << 2][..], &bytes].concat() }),
            (any::<u8>(), 0u8..40).prop_map(|(tag, low)| vec![tag & 0x1C | 1, low]),
            (any::<u8>(), 0u8..40).prop_map(|(tag, low)| vec![tag & 0xFC | 2, low, 0]),
            (any::<u8>(), 0u8..40).prop_map(|(tag, low)| vec![tag & 0xFC | 3, low, 0, 0, 0]),
            (0u8..70)
                .prop_map(|len| [&[60 << 2, len][..], &vec![7; usize::from(len) + 1]].concat()),
            prop::collection::vec(any::<u8>(), 0..4),
        ];
        let made =
            (0usize..400, prop::collection::vec(element, 0..8)).prop_map(|(len, elements)| {
                let mut block = Vec::new();
                put_length(len, &mut block);
                block.extend(elements.concat());
                block
            });
        prop_oneof![
            (honest, any::<prop::sample::Index>(), any::<u8>()).prop_map(
                |(mut block, at, byte): (Vec<u8>, _, _)| {
                    let at = at.index(block.len());
                    block[at] = byte;
                    block
                }
            ),
            made,
        ]
    }

    proptest! {
        #[test]
        fn blocks_come_to_what_the_crate_says(block in blocks()) {
            let theirs = match decompress_len(&block) {
                Ok(len) if len <= 1000 && can_become(block.len(), len) => {
                    snap::raw::Decoder::new().decompress_vec(&block).ok()
                }
                _ => None,
            };
            prop_assert_eq!(decompress(&block, 1000).ok().map(|bytes| bytes.to_vec()), theirs);
        }

        #[test]
        fn elements_that_fit_together(
            literal in prop::collection::vec(any::<u8>(), 1..60),
            copies in prop::collection::vec((0usize..60, 1usize..65), 0..20),
        ) {
            let (mut expected, mut elements) = (literal.clone(), vec![(literal.len() as u8 - 1) << 2]);
            elements.extend(&literal);
            for (back, len) in copies {
                let offset = back % expected.len() + 1;
                (0..len).for_each(|_| expected.push(expected[expected.len() - offset]));
                elements.extend([(len as u8 - 1) << 2 | 2, offset as u8, (offset >> 8) as u8]);
            }
            let mut block = Vec::new();
            put_length(expected.len(), &mut block);
            block.extend(elements);
            prop_assert_eq!(decompress(&block, 10_000), Ok(Bytes::from(expected)));
        }
    }
}
