//! The chain of addresses that proxies wrote, and which of them is the client.
//!
//! Each proxy appends the address that it was called from, so that only the right end can be
//! believed: as far as each address is that of a trusted proxy. The client is the rightmost address
//! that is none. Where all of them are trusted it is the rightmost, which no client can forge. What
//! is no address hides what is left of it.

use crate::maps::Address;

/// [`Hops::flags`]: there is a hop, readable or not.
const PRESENT: u8 = 1 << 0;
/// [`Hops::flags`]: `client` holds the rightmost address that is no trusted proxy.
const UNTRUSTED: u8 = 1 << 1;
/// [`Hops::flags`]: the rightmost hop is an address, and `last` holds it.
const ADDRESS: u8 = 1 << 2;
/// [`Hops::flags`]: nothing in it can be believed.
const UNREADABLE: u8 = 1 << 3;

/// The chain in all lines of one header, read from left to right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hops {
    client: Address,
    last: Address,
    flags: u8,
    _pad: [u8; 3],
}

/// What a chain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// There is no such header, or an empty one.
    Nothing,
    /// It is there, and its right end is no address.
    Unusable,
    Client(Address),
}

impl Hops {
    /// The next hop is no address.
    #[inline(always)]
    pub fn unknown(&mut self) {
        self.flags = PRESENT | self.flags & UNREADABLE;
    }

    /// The next hop is `address`.
    #[inline(always)]
    pub fn address(&mut self, address: Address, is_trusted: bool) {
        self.flags |= PRESENT | ADDRESS;
        self.last = address;
        if !is_trusted {
            self.client = address;
            self.flags |= UNTRUSTED;
        }
    }

    /// Nothing in this header can be believed.
    #[inline(always)]
    pub fn spoil(&mut self) {
        self.flags |= PRESENT | UNREADABLE;
    }

    #[inline(always)]
    pub fn said(&self) -> Said {
        if self.flags & PRESENT == 0 {
            Said::Nothing
        } else if self.flags & UNREADABLE != 0 {
            Said::Unusable
        } else if self.flags & UNTRUSTED != 0 {
            Said::Client(self.client)
        } else if self.flags & ADDRESS != 0 {
            Said::Client(self.last)
        } else {
            Said::Unusable
        }
    }
}
