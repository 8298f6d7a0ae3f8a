//! Headers that name a request's client.

use crate::handshake::FOLD;

/// Longest name of such a header, in bytes.
pub const LONGEST_NAME: usize = 32;
/// Maximum number of headers read.
pub const HEADERS: usize = 2;

/// A header's name in lower case, eight bytes a word, the first byte highest; zero after its end.
pub type Name = [u64; LONGEST_NAME / 8];

/// The headers that are read. The kernel has two sets of them, see [`crate::maps::name::HEADERS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeaderNames {
    /// All zero where there is none.
    pub names: [Name; HEADERS],
    /// Bit `n`: header `n` has the syntax of `Forwarded` (RFC 7239), else that of a list of addresses.
    pub forwarded: u32,
    pub _pad: u32,
}

/// `Forwarded` (RFC 7239).
pub const FORWARDED: &str = "forwarded";
/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: &str = "x-forwarded-for";

#[inline(always)]
const fn may_be(name: &Name, folded: u64) -> bool {
    let is_short = name[0] & 0xFF == 0;
    let compared = if is_short { 0xFF << 56 } else { u64::MAX };
    name[0] != 0 && (name[0] | FOLD) & compared == folded & compared
}

impl HeaderNames {
    /// The two headers read by default.
    pub fn usual() -> HeaderNames {
        let mut names = HeaderNames::default();
        names.set(0, FORWARDED);
        names.set(1, X_FORWARDED_FOR);
        names
    }

    /// Set the name of header `at` (of [`HEADERS`]), at most [`LONGEST_NAME`] bytes; a longer one
    /// matches nothing.
    pub fn set(&mut self, at: usize, name: &str) {
        let mut packed = Name::default();
        for (place, byte) in name.bytes().enumerate().take(LONGEST_NAME) {
            packed[place / 8] |= u64::from(byte.to_ascii_lowercase()) << (56 - place % 8 * 8);
        }
        if let Some(entry) = self.names.get_mut(at).filter(|_| name.len() <= LONGEST_NAME) {
            *entry = packed;
            let bit = 1 << at;
            let forwarded = name.eq_ignore_ascii_case(FORWARDED);
            self.forwarded = self.forwarded & !bit | if forwarded { bit } else { 0 };
        }
    }

    /// The names, in order.
    #[cfg(any(test, feature = "user"))]
    pub fn texts(&self) -> Vec<String> {
        let text = |name: &Name| {
            let bytes = name.iter().flat_map(|word| word.to_be_bytes());
            bytes.take_while(|byte| *byte != 0).map(char::from).collect::<String>()
        };
        self.names.iter().map(text).filter(|name| !name.is_empty()).collect()
    }

    /// Check whether a line that begins with these eight bytes, each with [`FOLD`], may be one of
    /// these headers. Also `true` for other lines, where a name is shorter than eight bytes.
    #[inline(always)]
    pub const fn may_begin(&self, folded: u64) -> bool {
        may_be(&self.names[0], folded) || may_be(&self.names[1], folded)
    }

    /// Number of the header `name`, from 1; 0 for none of them.
    #[inline(always)]
    pub fn find(&self, name: &Name) -> u8 {
        if name[0] == 0 {
            return 0;
        }
        let same = |other: &Name| {
            (name[0] ^ other[0])
                | (name[1] ^ other[1])
                | (name[2] ^ other[2])
                | (name[3] ^ other[3])
                == 0
        };
        if same(&self.names[0]) {
            1
        } else if same(&self.names[1]) {
            2
        } else {
            0
        }
    }
}
