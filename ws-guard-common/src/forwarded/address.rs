//! Reader for an IP address in text, byte by byte: RFC 4291, 2.2 and RFC 7239, 6.
//!
//! Forms: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`, and
//! IPv6 with an IPv4 tail. An IPv4-mapped address is the IPv4 address: [`Address`] stores both
//! alike. Anything else is no address, including `unknown` and `_hidden`. Octets with a leading
//! zero are refused, because some readers take them for octal.

use crate::maps::Address;

/// Position of the reader.
mod stage {
    /// Before the first byte.
    pub const BEGIN: u8 = 0;
    /// In an address without brackets.
    pub const BARE: u8 = 1;
    /// In an address in brackets.
    pub const BRACKETS: u8 = 2;
    /// After the closing bracket.
    pub const CLOSED: u8 = 3;
    /// In the port: any content, but not empty.
    pub const PORT: u8 = 4;
    /// No address.
    pub const BAD: u8 = 5;
}

/// Reader of one address. All zero: before the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AddressReader {
    /// 16-bit groups of IPv6 so far, in host byte order.
    groups: [u16; 8],
    /// The octets of IPv4 so far, the latest in the low byte.
    octets: u32,
    /// The digits since the last separator, as a hexadecimal number.
    hex: u32,
    /// The same as a decimal number.
    decimal: u32,
    /// One of [`stage`].
    stage: u8,
    /// Number of groups.
    count: u8,
    /// Number of groups before `::`, plus 1; 0 without a `::` so far.
    gap: u8,
    /// Digits since the last separator.
    digits: u8,
    /// Dots so far.
    dots: u8,
    /// Colons at the end of the text so far, up to 2.
    colons: u8,
    /// Not 0: a digit since the last separator was a to f.
    letters: u8,
    /// Not 0: the first digit since the last separator was 0.
    zero: u8,
}

impl AddressReader {
    /// Check whether nothing was read yet.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.stage == stage::BEGIN
    }

    /// Mark the text as no address, whatever follows.
    #[inline(always)]
    pub fn spoil(&mut self) {
        self.stage = stage::BAD;
    }

    /// Take one byte.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) {
        match self.stage {
            stage::BEGIN if byte == b'[' => self.stage = stage::BRACKETS,
            stage::BEGIN => {
                self.stage = stage::BARE;
                self.part(byte);
            }
            stage::BRACKETS if byte == b']' => {
                self.stage = if self.colons == 1 { stage::BAD } else { stage::CLOSED };
            }
            stage::BARE if byte == b':' && self.dots == 3 && self.is_v4() => {
                self.stage = if self.is_octet() { stage::PORT } else { stage::BAD };
                self.colons = 1;
            }
            stage::BARE | stage::BRACKETS => self.part(byte),
            stage::CLOSED if byte == b':' => {
                self.stage = stage::PORT;
                self.colons = 1;
            }
            stage::PORT if byte.is_ascii_alphanumeric() || byte == b'_' => self.colons = 0,
            _ => self.stage = stage::BAD,
        }
    }

    /// Take a byte of the address itself.
    #[inline(always)]
    fn part(&mut self, byte: u8) {
        if byte == b':' {
            self.colon();
        } else if byte == b'.' {
            self.dot();
        } else {
            self.digit(byte);
        }
    }

    #[inline(always)]
    fn digit(&mut self, byte: u8) {
        let decimal = byte.wrapping_sub(b'0');
        let letter = (byte | 0x20).wrapping_sub(b'a');
        let is_letter = letter < 6;
        // A single colon in front of the first group.
        let lonely = self.colons == 1 && self.count == 0;
        if decimal > 9 && !is_letter || self.digits >= 4 || lonely {
            self.stage = stage::BAD;
            return;
        }
        let value = if is_letter { letter + 10 } else { decimal } as u32;
        self.letters |= is_letter as u8;
        self.zero |= (self.digits == 0 && value == 0) as u8;
        self.hex = self.hex << 4 | value;
        self.decimal = self.decimal * 10 + value;
        self.digits += 1;
        self.colons = 0;
    }

    #[inline(always)]
    fn colon(&mut self) {
        if self.digits > 0 {
            if self.dots > 0 || self.count >= 8 {
                self.stage = stage::BAD;
                return;
            }
            self.group(self.hex as u16);
            self.colons = 1;
        } else if self.colons == 0 && self.count == 0 && self.dots == 0 && self.gap == 0 {
            self.colons = 1;
        } else if self.colons == 1 && self.gap == 0 {
            self.gap = self.count + 1;
            self.colons = 2;
        } else {
            self.stage = stage::BAD;
        }
    }

    #[inline(always)]
    fn dot(&mut self) {
        if !self.is_octet() || self.dots >= 3 {
            self.stage = stage::BAD;
            return;
        }
        self.octets = self.octets << 8 | self.decimal;
        self.dots += 1;
        self.next();
    }

    #[inline(always)]
    fn group(&mut self, value: u16) {
        self.groups[(self.count & 7) as usize] = value;
        self.count += 1;
        self.next();
    }

    /// Start after a separator.
    #[inline(always)]
    fn next(&mut self) {
        (self.hex, self.decimal, self.digits, self.letters, self.zero) = (0, 0, 0, 0, 0);
    }

    /// Check whether the digits since the last separator are an octet of IPv4.
    #[inline(always)]
    const fn is_octet(&self) -> bool {
        let leading_zero = self.zero != 0 && self.digits > 1;
        self.digits >= 1 && self.letters == 0 && self.decimal <= 255 && !leading_zero
    }

    /// Check whether no colon was read.
    #[inline(always)]
    const fn is_v4(&self) -> bool {
        self.count == 0 && self.gap == 0
    }

    /// Return the address, if the text is one.
    #[inline(always)]
    pub fn finish(&mut self) -> Option<Address> {
        let open = self.stage == stage::BEGIN || self.stage == stage::BRACKETS;
        // A port without a digit, or a single colon at the end.
        if open || self.stage == stage::BAD || self.colons == 1 {
            return None;
        }
        let ported = self.stage == stage::PORT;
        if self.is_v4() {
            let bare = self.stage == stage::BARE || ported;
            let whole = bare && self.dots == 3 && self.is_octet();
            let word = self.octets << 8 | self.decimal;
            return if whole { Some(Address::from_v4(word.to_be())) } else { None };
        }
        if self.dots > 0 {
            if self.dots != 3 || !self.is_octet() || self.count > 6 {
                return None;
            }
            let word = self.octets << 8 | self.decimal;
            self.group((word >> 16) as u16);
            self.group(word as u16);
        } else if self.digits > 0 {
            if self.count >= 8 {
                return None;
            }
            self.group(self.hex as u16);
        }
        self.expand()
    }

    /// The groups, with zeros in place of `::`.
    #[inline(always)]
    fn expand(&self) -> Option<Address> {
        let has_gap = self.gap != 0;
        if has_gap == (self.count >= 8) {
            return None;
        }
        let gap = if has_gap { self.gap.wrapping_sub(1) } else { 8 };
        let behind = 8u8.wrapping_sub(self.count.wrapping_sub(gap));
        let mut words = [0u32; 4];
        let mut i = 0u8;
        while i < 8 {
            let moved = i.wrapping_sub(8).wrapping_add(self.count);
            let from = if i < gap { i } else { moved };
            let there = i < gap || i >= behind;
            let group = if there { self.groups[(from & 7) as usize] as u32 } else { 0 };
            words[(i >> 1) as usize] |= group << if i & 1 == 0 { 16 } else { 0 };
            i += 1;
        }
        Some(Address([words[0].to_be(), words[1].to_be(), words[2].to_be(), words[3].to_be()]))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<IpAddr> {
        let mut reader = AddressReader::default();
        text.bytes().for_each(|byte| reader.push(byte));
        reader.finish().map(IpAddr::from)
    }

    /// The standard library's reading of it.
    fn expected(text: &str) -> Option<IpAddr> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let v6 = bare.and_then(|bare| bare.parse::<std::net::Ipv6Addr>().ok());
        let plain = text.parse::<IpAddr>().ok().or(v6.map(IpAddr::V6));
        let ported = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
        plain.or_else(ported).map(|address| address.to_canonical())
    }

    #[test]
    fn the_forms_that_proxies_write() {
        for text in [
            "192.0.2.1",
            "192.0.2.1:4711",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "1::",
            "2001:db8::1",
            "2001:DB8::17",
            "[2001:db8::17]:4711",
            "[::1]",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "::ffff:192.0.2.1",
            "[::ffff:192.0.2.1]:80",
            "64:ff9b::192.0.2.33",
            "1:2:3:4:5:6:1.2.3.4",
        ] {
            assert!(expected(text).is_some(), "{text}");
            assert_eq!(read(text), expected(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "unknown",
            "_hidden",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "01.2.3.4",
            "1.2.3.4:",
            "1.2.3.",
            ".1.2.3",
            "1..2.3",
            "1.2.3.4a",
            "a.2.3.4",
            ":",
            ":1",
            "1:",
            ":::",
            "1:::2",
            "1::2::3",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4::5:6:7:8",
            "12345::",
            "g::",
            "[1.2.3.4]",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[[::1]]",
            "fe80::1%eth0",
            "::1.2.3",
            "::1.2.3.4.5",
            "1:2:3:4:5:6:7:1.2.3.4",
            "1.2.3.4::",
            "\u{ff}",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn any_text_is_read_as_the_standard_library_reads_it(
            text in "(\\[?([0-9a-fA-F]{0,5}[:.]){0,9}[0-9a-f]{0,4}\\]?(:[0-9]{1,4})?|[0-9.]{0,17})",
        ) {
            prop_assert_eq!(read(&text), expected(&text), "{}", text);
        }

        #[test]
        fn every_address_is_read(v4: u32, v6: u128, port: u16) {
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                prop_assert_eq!(read(&address.to_string()), Some(address.to_canonical()));
                let ported = SocketAddr::new(address, port).to_string();
                prop_assert_eq!(read(&ported), Some(address.to_canonical()));
            }
        }
    }
}
