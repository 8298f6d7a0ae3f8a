//! Segments of a pending request, which pass again if they are retransmitted unchanged.
//!
//! The server may have a segment or not, whatever the guard has seen. Other bytes in its place could
//! end the request elsewhere, and the frames after it would not be where the guard looks for them.

/// Number of segments that are known, a power of two: a head of 16 KiB, which most servers do not
/// exceed, has twelve on Ethernet.
pub const PIECES: u32 = 16;

/// Segment of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Sequence number of its first byte.
    pub from: u32,
    /// Its length in bytes.
    pub len: u32,
    /// [`Digest`] of them.
    pub digest: u64,
}

/// The latest segments of a request, a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pieces {
    /// Key of the digests, random and different for each request.
    pub key: u64,
    pub of: [Piece; PIECES as usize],
    /// Number of segments so far.
    pub count: u32,
    /// Sequence number of the first one's first byte.
    pub from: u32,
}

impl Pieces {
    /// Add the request's next segment.
    #[inline(always)]
    pub const fn push(&mut self, piece: Piece) {
        if self.count == 0 {
            self.from = piece.from;
        }
        self.of[(self.count & (PIECES - 1)) as usize] = piece;
        self.count = self.count.wrapping_add(1);
    }

    /// Number of the segment that begins at `from`, if it is known.
    #[inline(always)]
    pub const fn find(&self, from: u32) -> Option<u32> {
        let mut i = 0;
        while i < PIECES {
            if i < self.count && self.of[i as usize].from == from {
                return Some(i);
            }
            i += 1;
        }
        None
    }

    /// Segment of this number, modulo [`PIECES`]: the next one follows it in the ring.
    #[inline(always)]
    pub const fn at(&self, number: u32) -> Piece {
        self.of[(number & (PIECES - 1)) as usize]
    }
}

/// Keyed hash of bytes: SipHash-1-2 (Aumasson and Bernstein, 2012), over words.
///
/// Two rounds at the end suffice where an attacker learns only whether two digests are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Digest {
    of: [u64; 4],
}

impl Digest {
    #[inline(always)]
    pub const fn new(key: u64) -> Digest {
        let [a, b, c, d] = [
            0x736F_6D65_7073_6575u64,
            0x646F_7261_6E64_6F6D,
            0x6C79_6765_6E65_7261,
            0x7465_6462_7974_6573,
        ];
        Digest { of: [a ^ key, b ^ key, c ^ key, d ^ key] }
    }

    /// Take a word.
    #[inline(always)]
    pub const fn push(&mut self, word: u64) {
        self.of[3] ^= word;
        self.round();
        self.of[0] ^= word;
    }

    /// Digest of the words so far.
    #[inline(always)]
    pub const fn end(mut self) -> u64 {
        self.of[2] ^= 0xFF;
        self.round();
        self.round();
        self.of[0] ^ self.of[1] ^ self.of[2] ^ self.of[3]
    }

    #[inline(always)]
    const fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.of;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.of = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(key: u64, words: &[u64]) -> u64 {
        let mut digest = Digest::new(key);
        words.iter().for_each(|word| digest.push(*word));
        digest.end()
    }

    #[test]
    fn digests_depend_on_key_words_and_order() {
        let all = [
            digest(1, &[1, 2]),
            digest(2, &[1, 2]),
            digest(1, &[2, 1]),
            digest(1, &[1]),
            digest(1, &[1, 2, 0]),
            digest(1, &[1 ^ 1 << 63, 2 ^ 1 << 63]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one), "{i}");
        }
        assert_eq!(all[0], digest(1, &[1, 2]));
    }

    #[test]
    fn the_latest_segments_are_known() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.find(0), None);
        let all = PIECES + 2;
        for n in 0..all {
            pieces.push(Piece { from: n * 10, len: 10, digest: n.into() });
        }
        assert_eq!(pieces.find(10), None);
        let first = pieces.find(20).unwrap();
        for n in 2..all {
            let piece = Piece { from: n * 10, len: 10, digest: n.into() };
            assert_eq!(pieces.at(first + n - 2), piece);
        }
        assert_eq!(pieces.find(all * 10 - 9), None);
    }
}
