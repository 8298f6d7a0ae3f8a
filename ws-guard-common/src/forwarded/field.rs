//! Value of a forwarding header: a list of addresses, or `Forwarded` (RFC 7239, 4).

use super::{address::AddressReader, hops::Hops, step};
use crate::maps::Address;

/// Position of the reader.
mod stage {
    /// In an item of a list of addresses.
    pub const ITEM: u8 = 0;
    /// In the name of a parameter of `Forwarded`.
    pub const NAME: u8 = 1;
    /// After its `=`.
    pub const VALUE: u8 = 2;
    /// In a value without quotes.
    pub const TOKEN: u8 = 3;
    /// In a value in quotes.
    pub const QUOTED: u8 = 4;
    /// After a backslash in quotes (RFC 9110, 5.6.4).
    pub const ESCAPED: u8 = 5;
    /// After the closing quote.
    pub const CLOSED: u8 = 6;
}

/// [`FieldReader::flags`]: the item is not only white space.
const BEGUN: u8 = 1 << 0;
/// [`FieldReader::flags`]: white space followed the item's content.
const ENDED: u8 = 1 << 1;
/// [`FieldReader::flags`]: the current parameter is `for`.
const IS_FOR: u8 = 1 << 2;
/// [`FieldReader::flags`]: the element had a `for` already.
const HAD_FOR: u8 = 1 << 3;
/// [`FieldReader::flags`]: the element is malformed.
const MALFORMED: u8 = 1 << 4;

/// Reader of forwarding headers, one line at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FieldReader {
    /// Address in the current item; also for the preface.
    pub address: AddressReader,
    /// The latest bytes of a parameter's name, lower case, the latest in the low byte; a longer
    /// name is not kept.
    name: u32,
    /// One of [`stage`].
    stage: u8,
    flags: u8,
    _pad: [u8; 2],
}

impl FieldReader {
    /// Begin a value, in the syntax of `Forwarded` or of a list.
    #[inline(always)]
    pub fn begin(&mut self, forwarded: bool) {
        self.stage = if forwarded { stage::NAME } else { stage::ITEM };
        self.begin_item();
    }

    #[inline(always)]
    fn begin_item(&mut self) {
        self.address = AddressReader::default();
        self.name = 0;
        self.flags = 0;
        if self.stage != stage::ITEM {
            self.stage = stage::NAME;
        }
    }

    /// Take one byte of the value: one of [`step`].
    #[inline(always)]
    pub fn push(&mut self, byte: u8) -> u8 {
        let quoted = self.stage == stage::QUOTED || self.stage == stage::ESCAPED;
        if byte == b',' && !quoted {
            return step::ITEM;
        }
        let blank = byte == b' ' || byte == b'\t' || byte == b'\r';
        self.flags |= if blank { 0 } else { BEGUN };
        match self.stage {
            stage::ITEM => return self.item_byte(blank),
            stage::QUOTED if byte == b'\\' => self.stage = stage::ESCAPED,
            stage::QUOTED if byte == b'"' => self.stage = stage::CLOSED,
            stage::QUOTED | stage::ESCAPED => {
                self.stage = stage::QUOTED;
                return self.node_byte();
            }
            _ if byte == b';' => self.end_pair(),
            stage::NAME => self.name_byte(byte, blank),
            stage::VALUE if byte == b'"' => self.stage = stage::QUOTED,
            stage::VALUE | stage::TOKEN if !blank => {
                self.stage = stage::TOKEN;
                let ends_twice = self.flags & ENDED != 0 || byte == b'"';
                self.flags |= if ends_twice { MALFORMED } else { 0 };
                return self.node_byte();
            }
            stage::TOKEN => self.flags |= ENDED,
            _ => self.flags |= if blank { 0 } else { MALFORMED },
        }
        step::NOTHING
    }

    #[inline(always)]
    fn item_byte(&mut self, blank: bool) -> u8 {
        if blank {
            self.flags |= if self.address.is_empty() { 0 } else { ENDED };
            step::NOTHING
        } else if self.flags & ENDED != 0 {
            self.address.spoil();
            step::NOTHING
        } else {
            step::NODE
        }
    }

    #[inline(always)]
    fn name_byte(&mut self, byte: u8, blank: bool) {
        if byte == b'=' {
            const FOR: u32 = u32::from_be_bytes(*b"\0for");
            let is_for = self.name == FOR;
            let twice = is_for && self.flags & HAD_FOR != 0;
            self.flags |= if twice { MALFORMED } else { 0 };
            self.flags |= if is_for { IS_FOR | HAD_FOR } else { 0 };
            self.stage = stage::VALUE;
        } else if !blank {
            // A longer name is marked here: it is not `for`.
            let longer = self.name >> 24 != 0;
            self.name = if longer { u32::MAX } else { self.name << 8 | (byte | 0x20) as u32 };
        }
    }

    /// Step for a byte of a parameter's value.
    #[inline(always)]
    const fn node_byte(&self) -> u8 {
        if self.flags & IS_FOR != 0 { step::NODE } else { step::NOTHING }
    }

    /// End a parameter that another one follows.
    #[inline(always)]
    fn end_pair(&mut self) {
        // `;;` and a trailing `;` are harmless; a name without a value is not.
        let nameless = self.stage == stage::NAME && self.name != 0;
        self.flags |= if nameless { MALFORMED } else { 0 };
        self.flags &= !(IS_FOR | ENDED);
        self.name = 0;
        self.stage = stage::NAME;
    }

    /// Check whether quotes are closed at the end of the line. If not, the field cannot be trusted.
    #[inline(always)]
    pub fn is_balanced(&self) -> bool {
        self.stage != stage::QUOTED && self.stage != stage::ESCAPED
    }

    /// Move the current item into `hops`; empty ones are ignored (RFC 9110, 5.6.1).
    #[inline(always)]
    pub fn take(&mut self, hops: &mut Hops, trusts: impl FnOnce(&Address) -> bool) {
        if self.flags & BEGUN != 0 {
            let is_list = self.stage == stage::ITEM;
            let has_node = is_list || self.flags & (HAD_FOR | MALFORMED) == HAD_FOR;
            match self.address.finish() {
                Some(address) if has_node => hops.address(address, trusts(&address)),
                _ => hops.unknown(),
            }
        }
        self.begin_item();
    }
}
