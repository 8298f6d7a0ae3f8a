//! TLS record headers, RFC 8446, 5.1 and RFC 5246, 6.2.
//!
//! ```text
//! +------+---------------+---------------+
//! | type | version major | minor | length in network byte order | then that many bytes
//! +------+---------------+---------------+
//! ```
//!
//! The only visible part of WebSocket inside TLS. A record of application data holds
//! [`overhead`](Cipher) bytes of the cipher in addition to the application's bytes. A client's ping
//! takes 6 to 131 of those if it has a record to itself, which is not guaranteed.

use crate::frame::{Violation, Violations};

/// Content types, RFC 8446, B.1, and RFC 6520 for the last one.
pub mod content {
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
    pub const HEARTBEAT: u8 = 24;
}

/// Bytes of a record header.
pub const HEADER: usize = 5;
/// Maximum length after the header: as TLS 1.2 allows (RFC 5246, 6.2.3); TLS 1.3 allows 2¹⁴ + 256.
pub const MAX_LENGTH: u16 = (1 << 14) + 2048;
/// First version byte of SSL 3.0 and of all TLS since.
/// The second one has no meaning (RFC 8446, 5.1).
pub const MAJOR: u8 = 3;
/// Handshake message at the start of a server's first record, RFC 8446, 4.
pub const SERVER_HELLO: u8 = 2;
/// The same of a client.
pub const CLIENT_HELLO: u8 = 1;

/// Shortest and longest frame of a client's ping, in bytes: masked, with no payload and with 125
/// bytes of it (RFC 6455, 5.5).
pub const SHORTEST_PING: u16 = 6;
pub const LONGEST_PING: u16 = 131;

/// Cipher, by what it adds to the application's bytes in a record, without [`HEADER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// TLS 1.3, every cipher but AES-CCM-8: a content type and a tag of 16 (RFC 8446, 5.2).
    Tls13,
    /// TLS 1.2 with AES-GCM: an explicit nonce of 8 and a tag of 16 (RFC 5288, 3).
    Gcm12,
    /// TLS 1.2 with ChaCha20-Poly1305: a tag of 16 (RFC 7905, 2).
    ChaCha12,
    /// TLS 1.2 with AES-CBC and HMAC-SHA1: an IV of 16, a MAC of 20, and padding of 1 byte to 16
    /// (RFC 5246, 6.2.3.2).
    CbcSha12,
    /// The same with the MAC after the padded ciphertext, as OpenSSL negotiates (RFC 7366, 3).
    CbcShaEtm12,
    /// AES-CBC with HMAC-SHA384, the longest MAC: 48 (RFC 5289, 3.1); the longest records of all.
    CbcSha384,
}

impl Cipher {
    pub const ALL: [Cipher; 6] = [
        Cipher::Tls13,
        Cipher::Gcm12,
        Cipher::ChaCha12,
        Cipher::CbcSha12,
        Cipher::CbcShaEtm12,
        Cipher::CbcSha384,
    ];

    /// Length in a record's header for `bytes` of the application.
    pub const fn length(self, bytes: u16) -> u16 {
        match self {
            Cipher::Tls13 => bytes + 1 + 16,
            Cipher::Gcm12 => 8 + bytes + 16,
            Cipher::ChaCha12 => bytes + 16,
            Cipher::CbcSha12 => 16 + ((bytes + 20) / 16 + 1) * 16,
            Cipher::CbcShaEtm12 => 16 + (bytes / 16 + 1) * 16 + 20,
            Cipher::CbcSha384 => 16 + ((bytes + 48) / 16 + 1) * 16,
        }
    }
}

/// A decoded record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// One of [`content`] in a valid record.
    pub kind: u8,
    /// First byte of the version.
    pub major: u8,
    /// Length after the header.
    pub length: u16,
}

impl Record {
    /// Make a header from its first two and last two bytes.
    #[inline(always)]
    pub const fn new(first: u16, length: u16) -> Record {
        Record { kind: (first >> 8) as u8, major: first as u8, length }
    }

    /// Decode a header from the first bytes of a record; `None` where there are too few.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let [kind, major, _, high, low] = *header;
        Some(Record { kind, major, length: u16::from_be_bytes([high, low]) })
    }

    /// Bytes of the whole record.
    #[inline(always)]
    pub const fn total(&self) -> u32 {
        HEADER as u32 + self.length as u32
    }

    /// [`Violation::BadRecord`] for a header that no TLS peer sends, otherwise nothing.
    ///
    /// Without a branch: the kernel's verifier would follow both sides.
    #[inline(always)]
    pub const fn violations(&self) -> Violations {
        let kind = self.kind.wrapping_sub(content::CHANGE_CIPHER_SPEC) as u32;
        let known = kind.wrapping_sub(5) >> 31;
        let version = ((self.major ^ MAJOR) as u32).wrapping_sub(1) >> 31;
        let fits = (self.length as u32).wrapping_sub(MAX_LENGTH as u32 + 1) >> 31;
        let bad = (known & version & fits) ^ 1;
        Violations((bad as u16) << Violation::BadRecord as u8)
    }

    /// 1 for application data of `shortest` to `longest` bytes, the cipher's included, otherwise 0.
    #[inline(always)]
    pub const fn is_small(&self, shortest: u16, longest: u16) -> u32 {
        let data = ((self.kind ^ content::APPLICATION_DATA) as u32).wrapping_sub(1) >> 31;
        let length = self.length as u32;
        let long_enough = (shortest as u32).wrapping_sub(length + 1) >> 31;
        let short_enough = length.wrapping_sub(longest as u32 + 1) >> 31;
        data & long_enough & short_enough
    }
}

/// Length of the record of application data at `at`, header included; 0 when there is none, or when
/// the segment splits the header.
///
/// Only application data, with the version that all TLS since 1.2 writes there: that is what a
/// midstream search finds, and the pattern is long enough to be rare in other data.
#[inline(never)]
pub fn data_at<S: crate::tracker::Segment>(segment: &S, at: u32) -> u32 {
    const TYPE_AND_MAJOR: u16 = (content::APPLICATION_DATA as u16) << 8 | MAJOR as u16;
    const VERSION: u16 = (MAJOR as u16) << 8 | 3;
    let (Some(first), Some(version), Some(length)) =
        (segment.u16_at(at), segment.u16_at(at + 1), segment.u16_at(at + 3))
    else {
        return 0;
    };
    if first != TYPE_AND_MAJOR || version != VERSION || length == 0 || length > MAX_LENGTH {
        return 0;
    }
    Record::new(first, length).total()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_stand_on_the_wire() {
        let record = Record::decode(&[23, 3, 3, 0x01, 0x02, 0xFF]).unwrap();
        assert_eq!(record, Record { kind: 23, major: 3, length: 0x102 });
        assert_eq!(record.total(), 0x107);
        assert_eq!(Record::decode(&[23, 3, 3, 1]), None);
    }

    #[test]
    fn what_no_peer_sends_is_a_violation() {
        let is_bad = |kind, major, length| {
            let violations = Record { kind, major, length }.violations();
            assert_eq!(violations.is_empty(), !violations.contains(Violation::BadRecord));
            !violations.is_empty()
        };
        for kind in 0..=255 {
            assert_eq!(is_bad(kind, 3, 100), !(20..=24).contains(&kind), "type {kind}");
        }
        for major in 0..=255 {
            assert_eq!(is_bad(23, major, 100), major != 3, "version {major}");
        }
        for length in 0..=u16::MAX {
            assert_eq!(is_bad(22, 3, length), length > 18_432, "length {length}");
        }
    }

    #[test]
    fn small_is_application_data_within_the_range() {
        for length in 0..=u16::MAX {
            let small = |kind| Record { kind, major: 3, length }.is_small(22, 192) == 1;
            assert_eq!(small(content::APPLICATION_DATA), (22..=192).contains(&length), "{length}");
            assert!(!small(content::HANDSHAKE) && !small(content::ALERT));
        }
        assert_eq!(Record { kind: 23, major: 3, length: 7 }.is_small(7, 7), 1);
    }

    /// A ping without payload, and one with the most.
    #[test]
    fn ciphers_add_what_their_rfcs_say() {
        let lengths = |cipher: Cipher| (cipher.length(SHORTEST_PING), cipher.length(LONGEST_PING));
        assert_eq!(lengths(Cipher::Tls13), (23, 148));
        assert_eq!(lengths(Cipher::Gcm12), (30, 155));
        assert_eq!(lengths(Cipher::ChaCha12), (22, 147));
        assert_eq!(lengths(Cipher::CbcSha12), (48, 176));
        assert_eq!(lengths(Cipher::CbcShaEtm12), (52, 180));
        assert_eq!(lengths(Cipher::CbcSha384), (80, 208));
    }
}
