//! WebSocket frame headers, RFC 6455, 5.2.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! |F|R|R|R| opcode|M| Payload len |  Extended length: 0, 16, 64 bit|
//! |I|S|S|S|  (4)  |A|     (7)     |  in network byte order         |
//! |N|V|V|V|       |S|             |  then 4 bytes masking key if M |
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! ```

/// Frame opcodes, RFC 6455, 11.8. All others are reserved.
pub mod opcode {
    use super::OPCODE;

    pub const CONTINUATION: u8 = 0x0;
    pub const TEXT: u8 = 0x1;
    pub const BINARY: u8 = 0x2;
    pub const CLOSE: u8 = 0x8;
    pub const PING: u8 = 0x9;
    pub const PONG: u8 = 0xA;

    /// One bit an opcode that RFC 6455 defines.
    pub(super) const KNOWN: u32 =
        1 << CONTINUATION | 1 << TEXT | 1 << BINARY | 1 << CLOSE | 1 << PING | 1 << PONG;
    /// One bit an opcode that begins a message.
    pub(super) const BEGINS: u32 = 1 << TEXT | 1 << BINARY;

    /// Check whether RFC 6455 reserves the opcode.
    #[inline(always)]
    pub const fn is_reserved(opcode: u8) -> bool {
        KNOWN >> (opcode & OPCODE) & 1 == 0
    }

    /// Close, ping, pong and the reserved 0xB to 0xF (RFC 6455, 5.5).
    #[inline(always)]
    pub const fn is_control(opcode: u8) -> bool {
        opcode & 0x8 != 0
    }
}

/// First byte: final fragment of a message.
pub const FIN: u8 = 0x80;
/// First byte: the three bits reserved for extensions.
pub const RSV: u8 = 0x70;
/// First byte: RSV1, which permessage-deflate (RFC 7692) uses.
pub const RSV1: u8 = 0x40;
/// First byte: the opcode.
pub const OPCODE: u8 = 0x0F;
/// Second byte: the payload is masked, and a 4 byte masking key follows the length.
pub const MASK: u8 = 0x80;
/// Second byte: the 7 bit length, or 126 and 127 for the extended ones.
pub const LEN7: u8 = 0x7F;
/// Longest payload of a control frame, in bytes (RFC 6455, 5.5).
pub const MAX_CONTROL_PAYLOAD: u64 = 125;
/// Longest header without the masking key, in bytes.
pub const MAX_HEADER: usize = 10;
/// Shortest header of a client, with the masking key, in bytes.
pub const SHORTEST_MASKED: u32 = 6;
/// XOR with the first byte: a PING header (0x9) becomes a PONG (0xA), nothing else changes.
pub const PING_TO_PONG: u8 = opcode::PING ^ opcode::PONG;

/// Violation of RFC 6455 by a frame header. A header can have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Violation {
    /// Opcode 0x3 to 0x7 or 0xB to 0xF (5.2).
    ReservedOpcode = 0,
    /// RSV bits that no agreed extension defines (5.2).
    ReservedBits = 1,
    /// A client's frame without a mask (5.1).
    Unmasked = 2,
    /// A server's frame with one (5.1).
    Masked = 3,
    /// A control frame of more than 125 bytes (5.5).
    ControlTooLong = 4,
    /// A control frame without FIN (5.5).
    ControlFragmented = 5,
    /// A 16 or 64 bit length where a shorter form would do (5.2).
    NonMinimalLength = 6,
    /// A 64 bit length with the most significant bit set (5.2).
    LengthTopBit = 7,
    /// A continuation frame with no message to continue (5.4).
    UnexpectedContinuation = 8,
    /// A text or binary frame inside a fragmented message (5.4).
    InterleavedData = 9,
    /// On a TLS port: no record begins where one should (RFC 8446, 5.1).
    BadRecord = 10,
}

impl Violation {
    /// Number of kinds.
    pub const COUNT: usize = 11;

    /// Every kind, in the order of its number.
    pub const ALL: [Violation; Self::COUNT] = [
        Violation::ReservedOpcode,
        Violation::ReservedBits,
        Violation::Unmasked,
        Violation::Masked,
        Violation::ControlTooLong,
        Violation::ControlFragmented,
        Violation::NonMinimalLength,
        Violation::LengthTopBit,
        Violation::UnexpectedContinuation,
        Violation::InterleavedData,
        Violation::BadRecord,
    ];

    /// The name in metrics, events and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Violation::ReservedOpcode => "reserved_opcode",
            Violation::ReservedBits => "reserved_bits",
            Violation::Unmasked => "unmasked",
            Violation::Masked => "masked",
            Violation::ControlTooLong => "control_too_long",
            Violation::ControlFragmented => "control_fragmented",
            Violation::NonMinimalLength => "non_minimal_length",
            Violation::LengthTopBit => "length_top_bit",
            Violation::UnexpectedContinuation => "unexpected_continuation",
            Violation::InterleavedData => "interleaved_data",
            Violation::BadRecord => "bad_record",
        }
    }

    #[inline(always)]
    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// Set of [`Violation`]s: bit `n` is the kind with number `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Violations(pub u16);

impl Violations {
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub const fn contains(self, kind: Violation) -> bool {
        self.0 & kind.bit() != 0
    }

    /// The set without one kind.
    #[inline(always)]
    pub const fn without(self, kind: Violation) -> Violations {
        Violations(self.0 & !kind.bit())
    }

    /// The kinds in the set, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Violation> {
        Violation::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }
}

/// A decoded frame header, without the masking key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// FIN, RSV and opcode as on the wire.
    pub first: u8,
    /// Mask bit and 7 bit length as on the wire.
    pub second: u8,
    /// Payload length in bytes; 64 bit lengths as on the wire, the top bit included.
    pub payload_len: u64,
}

/// Error: the header needs more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// Bytes known to be needed, masking key not counted: 2, 4 or 10.
    pub needed: usize,
}

/// State of the stream that the next frame's validity depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The frames of this direction come from the client, and so are masked.
    pub from_client: bool,
    /// permessage-deflate was agreed, which defines RSV1.
    pub rsv1_agreed: bool,
    /// A message was begun by a fragment without FIN.
    pub in_message: bool,
}

impl Header {
    /// Decode a header from the first bytes of a frame.
    ///
    /// Reads at most [`MAX_HEADER`] bytes, without the masking key.
    pub fn decode(bytes: &[u8]) -> Result<Header, Incomplete> {
        let (Some(&first), Some(&second)) = (bytes.first(), bytes.get(1)) else {
            return Err(Incomplete { needed: 2 });
        };
        let needed = header_len(second);
        let Some(extended) = bytes.get(2..needed) else {
            return Err(Incomplete { needed });
        };
        let payload_len = if extended.is_empty() {
            u64::from(second & LEN7)
        } else {
            extended.iter().fold(0, |len, byte| len << 8 | u64::from(*byte))
        };
        Ok(Header { first, second, payload_len })
    }

    #[inline(always)]
    pub const fn opcode(&self) -> u8 {
        self.first & OPCODE
    }

    #[inline(always)]
    pub const fn fin(&self) -> bool {
        self.first & FIN != 0
    }

    #[inline(always)]
    pub const fn masked(&self) -> bool {
        self.second & MASK != 0
    }

    /// Length of the header, masking key included: 2 to 14.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // No header is empty.
    pub const fn len(&self) -> usize {
        header_len(self.second) + if self.masked() { 4 } else { 0 }
    }

    /// All violations of RFC 6455 in this header.
    ///
    /// Shifts and masks instead of comparisons: the kernel's verifier follows both outcomes of each
    /// comparison, and ten of them in a row are a thousand paths. Every variable here is 0 or 1,
    /// except `opcode`, `len7`, `rsv` and `payload`.
    #[inline(always)]
    pub const fn violations(&self, expect: Expect) -> Violations {
        let (first, second) = (self.first as u32, self.second as u32);
        let opcode = first & OPCODE as u32;
        let (fin, masked) = (first >> 7, second >> 7);
        let len7 = second & LEN7 as u32;
        let known = opcode::KNOWN >> opcode & 1;
        let begins = opcode::BEGINS >> opcode & 1;
        let control = opcode >> 3;
        let continuation = known & !control & !begins;
        // RFC 7692, 6: RSV1 is set on the first fragment of a message only.
        let rsv1_allowed = begins & expect.rsv1_agreed as u32;
        let rsv = (first >> 4 & 7) & !(rsv1_allowed << 2);
        // 126 and 127 mean an extended length, 127 the longer one.
        let extended = (len7 + 2) >> 7;
        let longer = extended & len7 & 1;
        let payload = self.payload_len;
        let top_bit = (payload >> 63) as u32 & longer;
        let fits_7 = (payload.wrapping_sub(126) >> 63) as u32;
        let fits_16 = (payload.wrapping_sub(0x1_0000) >> 63) as u32 & !top_bit;
        let non_minimal = extended & (fits_7 & !longer | fits_16 & longer);
        let from_client = expect.from_client as u32;
        let in_message = expect.in_message as u32;
        let bits = (known ^ 1) << Violation::ReservedOpcode as u8
            | ((rsv | rsv >> 1 | rsv >> 2) & 1) << Violation::ReservedBits as u8
            | (from_client & !masked & 1) << Violation::Unmasked as u8
            | (masked & !from_client & 1) << Violation::Masked as u8
            | (control & extended) << Violation::ControlTooLong as u8
            | (control & !fin & 1) << Violation::ControlFragmented as u8
            | (non_minimal & 1) << Violation::NonMinimalLength as u8
            | top_bit << Violation::LengthTopBit as u8
            | (continuation & !in_message & 1) << Violation::UnexpectedContinuation as u8
            | (begins & in_message) << Violation::InterleavedData as u8;
        Violations(bits as u16)
    }

    /// Check whether a fragmented message is open after this frame.
    #[inline(always)]
    pub const fn in_message_after(&self, in_message: bool) -> bool {
        let opcode = self.opcode();
        if opcode::is_control(opcode) || opcode::is_reserved(opcode) {
            in_message
        } else {
            !self.fin()
        }
    }
}

/// Bytes of a header up to its masking key, from its second byte: 2, 4 or 10.
#[inline(always)]
pub const fn header_len(second: u8) -> usize {
    match second & LEN7 {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Expect = Expect { from_client: true, rsv1_agreed: false, in_message: false };

    fn violations(bytes: &[u8], expect: Expect) -> Vec<Violation> {
        Header::decode(bytes).unwrap().violations(expect).iter().collect()
    }

    #[test]
    fn three_length_forms() {
        let short = Header::decode(&[0x81, 0x85]).unwrap();
        assert_eq!((short.payload_len, short.len()), (5, 6));
        let medium = Header::decode(&[0x82, 0xFE, 0x01, 0x02]).unwrap();
        assert_eq!((medium.payload_len, medium.len()), (0x102, 8));
        let long = Header::decode(&[0x82, 0x7F, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap();
        assert_eq!((long.payload_len, long.len()), (1 << 32, 10));
    }

    #[test]
    fn a_cut_header_says_what_it_needs() {
        assert_eq!(Header::decode(&[]), Err(Incomplete { needed: 2 }));
        assert_eq!(Header::decode(&[0x81]), Err(Incomplete { needed: 2 }));
        assert_eq!(Header::decode(&[0x81, 0xFE, 1]), Err(Incomplete { needed: 4 }));
        assert_eq!(
            Header::decode(&[0x81, 0xFF, 1, 2, 3, 4, 5, 6, 7]),
            Err(Incomplete { needed: 10 })
        );
    }

    #[test]
    fn each_violation_has_a_kind_of_its_own() {
        let in_message = Expect { in_message: true, ..CLIENT };
        let server = Expect { from_client: false, ..CLIENT };
        for (bytes, expect, kind) in [
            (&[0x83, 0x80][..], CLIENT, Violation::ReservedOpcode),
            (&[0xC1, 0x80], CLIENT, Violation::ReservedBits),
            (&[0x81, 0x00], CLIENT, Violation::Unmasked),
            (&[0x81, 0x80], server, Violation::Masked),
            (&[0x89, 0xFE, 0, 126], CLIENT, Violation::ControlTooLong),
            (&[0x09, 0x80], CLIENT, Violation::ControlFragmented),
            (&[0x81, 0xFE, 0, 125], CLIENT, Violation::NonMinimalLength),
            (&[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], CLIENT, Violation::NonMinimalLength),
            (&[0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], CLIENT, Violation::LengthTopBit),
            (&[0x80, 0x80], CLIENT, Violation::UnexpectedContinuation),
            (&[0x82, 0x80], in_message, Violation::InterleavedData),
        ] {
            assert_eq!(violations(bytes, expect), [kind], "{bytes:02x?}");
        }
    }

    #[test]
    fn what_the_rfc_allows_is_no_violation() {
        let deflate = Expect { rsv1_agreed: true, ..CLIENT };
        let in_message = Expect { in_message: true, ..CLIENT };
        for (bytes, expect) in [
            (&[0x81, 0x80][..], CLIENT),
            (&[0x81, 0xFD], CLIENT),
            (&[0x82, 0xFE, 0, 126], CLIENT),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0], CLIENT),
            (&[0xC1, 0x80], deflate),
            (&[0x89, 0xFD], in_message),
            (&[0x00, 0x80], in_message),
            (&[0x8A, 0x80], CLIENT),
            (&[0x88, 0x82], CLIENT),
        ] {
            assert_eq!(violations(bytes, expect), [], "{bytes:02x?}");
        }
        // RSV1 belongs on the first fragment of a message, not on a control frame or continuation.
        assert_eq!(violations(&[0xC9, 0x80], deflate), [Violation::ReservedBits]);
        assert_eq!(
            violations(&[0xC0, 0x80], Expect { in_message: true, ..deflate }),
            [Violation::ReservedBits]
        );
    }

    #[test]
    fn a_ping_becomes_a_pong_by_one_byte() {
        assert_eq!(0x89 ^ PING_TO_PONG, 0x8A);
    }
}
