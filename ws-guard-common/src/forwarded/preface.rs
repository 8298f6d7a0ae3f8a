//! PROXY protocol, versions 1 and 2: the header before a connection's first byte.
//!
//! Source: HAProxy's `proxy-protocol.txt`, sections 2.1 and 2.2. With LOCAL, UNKNOWN and families
//! without an IP address the connection is the proxy's own.

use super::step;
use crate::maps::Address;

/// First bytes of a header of version 1.
pub const V1: &[u8; 6] = b"PROXY ";
/// First bytes of a header of version 2.
pub const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1 in bytes, with its line end.
const LONGEST_V1: u32 = 107;
/// Bytes of a header of version 2 before its addresses.
const FIXED_V2: u32 = 16;

/// Position of the reader.
pub mod stage {
    /// Before the first byte.
    pub const BEGIN: u8 = 0;
    /// In the fixed part of version 2.
    pub const V2: u8 = 1;
    /// In the addresses and fields of version 2.
    pub const V2_REST: u8 = 2;
    /// In `PROXY ` of version 1.
    pub const V1: u8 = 3;
    /// In the protocol's name.
    pub const V1_PROTOCOL: u8 = 4;
    /// In the source address.
    pub const V1_SOURCE: u8 = 5;
    /// After it.
    pub const V1_REST: u8 = 6;
    /// After the header, or after a first byte that begins none.
    pub const OVER: u8 = 7;
    /// No header after all, and no beginning of a request either.
    pub const BAD: u8 = 8;
}

/// Content of the header.
pub mod said {
    /// No header.
    pub const NOTHING: u8 = 0;
    /// The connection is the proxy's own.
    pub const LOCAL: u8 = 1;
    /// [`super::Preface::client`] is the client.
    pub const CLIENT: u8 = 2;
    /// It is malformed.
    pub const UNUSABLE: u8 = 3;
}

/// Reader of the header. All zero: before the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Preface {
    /// The client's address, with [`said::CLIENT`].
    pub client: Address,
    /// Bytes taken so far.
    taken: u32,
    /// Version 2: bytes of addresses and fields. Version 1: fields after the source address.
    rest: u32,
    /// Version 1: the latest bytes of the protocol's name. Version 2: of a word of the address.
    word: u32,
    /// One of [`stage`].
    pub stage: u8,
    /// One of [`said`].
    pub said: u8,
    /// Bytes of the address: 4, 16, or 0 without one.
    family: u8,
    /// The latest byte.
    last: u8,
}

/// Byte `at` of [`V1`]. By shifts: for an index the kernel's verifier needs a bound.
#[inline(always)]
const fn signature_v1(at: u32) -> u8 {
    const TEXT: u64 = u64::from_be_bytes(*b"PROXY \0\0");
    (TEXT >> (56 - (at & 7) * 8)) as u8
}

/// Byte `at` of [`V2`].
#[inline(always)]
const fn signature_v2(at: u32) -> u8 {
    const FRONT: u64 = u64::from_be_bytes(*b"\r\n\r\n\0\r\nQ");
    const BACK: u64 = u64::from_be_bytes(*b"UIT\n\0\0\0\0");
    let word = if at < 8 { FRONT } else { BACK };
    (word >> (56 - (at & 7) * 8)) as u8
}

impl Preface {
    /// Check whether the next byte belongs to the request.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.stage == stage::OVER
    }

    /// Take one byte, unless the header is over: one of [`step`]. [`step::REQUEST`] when it does not belong
    /// to the header.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) -> u8 {
        self.taken += 1;
        let mut step = step::NOTHING;
        match self.stage {
            stage::BEGIN => self.first(byte),
            stage::V2 => self.fixed(byte),
            stage::V2_REST => self.binary(byte),
            stage::BAD | stage::OVER => {}
            _ => step = self.text(byte),
        }
        self.last = byte;
        let none = self.stage == stage::OVER && self.said == said::NOTHING;
        if none { step::REQUEST } else { step }
    }

    #[inline(always)]
    fn first(&mut self, byte: u8) {
        self.stage = match byte {
            b'P' => stage::V1,
            b'\r' => stage::V2,
            _ => stage::OVER,
        };
    }

    #[inline(always)]
    fn spoil(&mut self) {
        self.stage = stage::BAD;
        self.said = said::UNUSABLE;
    }

    /// The fixed part of version 2: signature, version and command, family, length.
    #[inline(always)]
    fn fixed(&mut self, byte: u8) {
        let at = self.taken - 1;
        if at < V2.len() as u32 {
            if byte == signature_v2(at) {
                return;
            }
            // Empty lines before a request look the same so far (RFC 9112, 2.2).
            if at <= 4 {
                self.stage = stage::OVER
            } else {
                self.spoil()
            }
            return;
        }
        match at {
            12 => match byte {
                0x20 => self.said = said::LOCAL,
                0x21 => self.said = said::CLIENT,
                _ => self.spoil(),
            },
            // The family is ignored for LOCAL; without an IP address it counts as LOCAL.
            13 => match byte >> 4 {
                1 if self.said == said::CLIENT => self.family = 4,
                2 if self.said == said::CLIENT => self.family = 16,
                _ => self.said = said::LOCAL,
            },
            14 => self.rest = (byte as u32) << 8,
            _ => {
                self.rest |= byte as u32;
                let addresses = match self.family {
                    4 => 12,
                    16 => 36,
                    _ => 0,
                };
                if self.rest < addresses {
                    self.spoil();
                } else if self.rest == 0 {
                    self.stage = stage::OVER;
                } else {
                    self.stage = stage::V2_REST;
                }
            }
        }
    }

    /// Store word `at` of the source address.
    #[inline(always)]
    fn address_word(&mut self, at: u32) {
        if self.family == 4 {
            self.client = Address::from_v4(self.word.to_be());
        } else {
            self.client.0[at as usize] = self.word.to_be();
        }
    }

    /// Skip up to `most` bytes after the addresses of version 2, except the last one.
    /// Returns their number.
    #[inline(always)]
    pub const fn skip(&mut self, most: u32) -> u32 {
        let at = self.taken.wrapping_sub(FIXED_V2);
        if self.stage != stage::V2_REST || at < self.family as u32 || at >= self.rest {
            return 0;
        }
        let left = self.rest - at - 1;
        let skipped = if left < most { left } else { most };
        self.taken += skipped;
        skipped
    }

    /// Take a byte of addresses, ports and fields of version 2; only the source address counts.
    #[inline(always)]
    fn binary(&mut self, byte: u8) {
        let at = self.taken - 1 - FIXED_V2;
        if at < self.family as u32 {
            self.word = self.word << 8 | byte as u32;
            if at & 3 == 3 {
                self.address_word(at >> 2 & 3);
            }
        }
        if at + 1 >= self.rest {
            self.stage = stage::OVER;
        }
    }

    /// Version 1.
    #[inline(always)]
    fn text(&mut self, byte: u8) -> u8 {
        if self.taken > LONGEST_V1 {
            self.spoil();
            return step::NOTHING;
        }
        match self.stage {
            stage::V1 => {
                let at = self.taken - 1;
                if byte != signature_v1(at) {
                    // `POST` and the like: no header, and no request that could ask for an upgrade.
                    self.stage = stage::BAD;
                } else if at + 1 == V1.len() as u32 {
                    self.stage = stage::V1_PROTOCOL;
                }
            }
            stage::V1_PROTOCOL => self.protocol(byte),
            stage::V1_SOURCE if byte == b' ' => return step::ITEM,
            stage::V1_SOURCE => return step::NODE,
            _ => self.rest(byte),
        }
        step::NOTHING
    }

    #[inline(always)]
    fn protocol(&mut self, byte: u8) {
        const TCP4: u32 = u32::from_be_bytes(*b"TCP4");
        const TCP6: u32 = u32::from_be_bytes(*b"TCP6");
        const NOWN: u32 = u32::from_be_bytes(*b"NOWN");
        if byte != b' ' && byte != b'\r' {
            self.word = self.word << 8 | byte as u32;
            return;
        }
        let length = self.taken - 1 - V1.len() as u32;
        if self.word == NOWN && length == 7 {
            // The rest of the line is to be ignored.
            (self.said, self.rest, self.stage) = (said::LOCAL, u32::MAX, stage::V1_REST);
        } else if (self.word == TCP4 || self.word == TCP6) && length == 4 && byte == b' ' {
            self.family = if self.word == TCP4 { 4 } else { 16 };
            self.stage = stage::V1_SOURCE;
        } else {
            self.spoil();
        }
    }

    /// Take the source address of version 1.
    #[inline(always)]
    pub fn source(&mut self, address: Option<Address>) {
        match address {
            // A mapped address may come as TCP6.
            Some(client) if self.family == 16 || client.is_v4() => {
                (self.client, self.said, self.stage) = (client, said::CLIENT, stage::V1_REST);
            }
            _ => self.spoil(),
        }
    }

    /// Take a byte of destination and ports, which are required but not used.
    #[inline(always)]
    fn rest(&mut self, byte: u8) {
        if byte == b' ' {
            self.rest = self.rest.saturating_add(1);
        } else if byte == b'\n' {
            let whole = self.last == b'\r' && (self.rest == 2 || self.rest == u32::MAX);
            if whole { self.stage = stage::OVER } else { self.spoil() }
        }
    }
}
