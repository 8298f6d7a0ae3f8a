//! Framing of a chunked body (RFC 9112, 7.1): where it ends.
//!
//! Strict: sizes in hexadecimal digits alone, lines that end in CR LF, no chunk extension and no trailer.
//! Framing that servers may read differently is [`VAGUE`].

/// Longest chunk that is followed, in bytes: several are less than half the sequence space.
const LONGEST: u32 = 1 << 28;
/// Digits of a size that are read.
const DIGITS: u8 = 8;

/// Result of [`Chunks::push`]: the body has ended.
pub const DONE: u32 = u32::MAX;
/// Result of [`Chunks::push`]: where the body goes on is not certain.
pub const VAGUE: u32 = u32::MAX - 1;

/// [`Chunks::next`]: the part of the framing that the next byte belongs to.
mod part {
    /// There is no chunked body.
    pub const NONE: u8 = 0;
    pub const SIZE: u8 = 1;
    pub const SIZE_LF: u8 = 2;
    /// Behind a chunk's data.
    pub const DATA_CR: u8 = 3;
    pub const DATA_LF: u8 = 4;
    /// Behind the size of the last chunk.
    pub const LAST_CR: u8 = 5;
    pub const LAST_LF: u8 = 6;
}

/// Reader of a chunked body's framing. All zero: there is no such body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Chunks {
    /// Size of the current chunk, as far as it was read.
    size: u32,
    /// The part that the next byte belongs to.
    next: u8,
    /// Number of digits of the size that were read.
    digits: u8,
    _pad: [u8; 2],
}

impl Chunks {
    /// A body that begins with the next byte.
    pub const BEGIN: Chunks = Chunks { size: 0, next: part::SIZE, digits: 0, _pad: [0; 2] };
    /// No chunked body, or one that has ended.
    pub const NONE: Chunks = Chunks { size: 0, next: part::NONE, digits: 0, _pad: [0; 2] };

    /// Check whether two readers are in the same state.
    #[inline(always)]
    pub const fn is(&self, other: &Chunks) -> bool {
        self.size == other.size && self.next == other.next && self.digits == other.digits
    }

    /// Its state in six bytes: the size, and the rest; see [`Chunks::unpack`].
    #[inline(always)]
    pub const fn pack(&self) -> (u32, u16) {
        (self.size, (self.next as u16) << 8 | self.digits as u16)
    }

    /// Reader in the state that [`Chunks::pack`] returned.
    #[inline(always)]
    pub const fn unpack(size: u32, rest: u16) -> Chunks {
        Chunks { size, next: (rest >> 8) as u8, digits: rest as u8, _pad: [0; 2] }
    }

    /// Check whether a chunked body has begun, and not ended.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.next != part::NONE
    }

    /// Take a byte of the framing. Returns the bytes of data to skip behind it, [`DONE`] or [`VAGUE`].
    #[inline(always)]
    pub const fn push(&mut self, byte: u8) -> u32 {
        if self.next == part::SIZE && byte != b'\r' {
            return self.digit(byte);
        }
        let line_feed = matches!(self.next, part::SIZE_LF | part::DATA_LF | part::LAST_LF);
        let no_size = self.next == part::SIZE && self.digits == 0;
        if byte != (if line_feed { b'\n' } else { b'\r' }) || no_size || !self.is_open() {
            return VAGUE;
        }
        let (was, size) = (self.next, self.size);
        self.next = match was {
            part::SIZE_LF if size == 0 => part::LAST_CR,
            part::SIZE_LF => part::DATA_CR,
            part::LAST_LF => part::NONE,
            part::DATA_LF => part::SIZE,
            _ => was + 1,
        };
        if was == part::DATA_LF {
            (self.size, self.digits) = (0, 0);
        }
        match was {
            part::SIZE_LF => size,
            part::LAST_LF => DONE,
            _ => 0,
        }
    }

    /// Take a digit of the size.
    #[inline(always)]
    const fn digit(&mut self, byte: u8) -> u32 {
        let letter = (byte | 0x20).wrapping_sub(b'a');
        let digit = byte.wrapping_sub(b'0');
        let value = if digit < 10 { digit } else { letter.wrapping_add(10) };
        let known = digit < 10 || letter < 6;
        self.size = self.size << 4 | value as u32;
        self.digits = self.digits.saturating_add(1);
        if known && self.digits <= DIGITS && self.size <= LONGEST { 0 } else { VAGUE }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Offset behind the body in `bytes`; `None` where it is vague or cut.
    fn end_of(bytes: &[u8]) -> Option<usize> {
        let (mut chunks, mut at) = (Chunks::BEGIN, 0);
        loop {
            match chunks.push(*bytes.get(at)?) {
                DONE => return Some(at + 1),
                VAGUE => return None,
                data => at += 1 + data as usize,
            }
        }
    }

    #[test]
    fn a_body_ends_behind_its_last_chunk() {
        assert_eq!(end_of(b"0\r\n\r\n"), Some(5));
        assert_eq!(end_of(b"5\r\nhello\r\n0\r\n\r\nGET /"), Some(15));
        assert_eq!(end_of(b"00A\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n"), Some(39));
    }

    #[test]
    fn other_framing_is_vague() {
        for body in [
            "\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "g\r\nhello\r\n0\r\n\r\n",
            "0\r\nX: y\r\n\r\n",
            "10000001\r\n",
            "000000005\r\nhello\r\n0\r\n\r\n",
            "fffffffff\r\n",
        ] {
            let (mut chunks, mut vague) = (Chunks::BEGIN, false);
            let mut at = 0;
            while let (false, Some(byte)) = (vague, body.as_bytes().get(at)) {
                match chunks.push(*byte) {
                    VAGUE => vague = true,
                    DONE => break,
                    data => at += 1 + data as usize,
                }
            }
            assert!(vague, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn any_chunks_are_followed(sizes in prop::collection::vec(1usize..200, 0..20)) {
            let mut body = Vec::new();
            for size in sizes {
                body.extend(format!("{size:x}\r\n").bytes());
                body.extend(std::iter::repeat_n(b'\r', size));
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            prop_assert_eq!(end_of(&body), Some(body.len()));
            body.extend(b"GET / HTTP/1.1\r\n");
            prop_assert_eq!(end_of(&body), Some(body.len() - 16));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut chunks = Chunks::BEGIN;
            for byte in bytes {
                chunks.push(byte);
            }
        }
    }
}
