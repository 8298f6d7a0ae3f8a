//! Chain of addresses that proxies wrote, and the client among them.
//!
//! Each proxy appends its peer's address, so that only the right end can be trusted, up to the
//! first address that is no trusted proxy. The client is the rightmost address that is no trusted
//! proxy; if all are trusted, the rightmost one, which no client can forge. An entry that is no
//! address hides everything left of it.

use crate::maps::Address;

/// [`Hops::flags`]: there is a hop, readable or not.
const PRESENT: u8 = 1 << 0;
/// [`Hops::flags`]: `client` holds the rightmost address that is no trusted proxy.
const UNTRUSTED: u8 = 1 << 1;
/// [`Hops::flags`]: the rightmost hop is an address, and `last` holds it.
const ADDRESS: u8 = 1 << 2;
/// [`Hops::flags`]: the header cannot be trusted.
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

/// Conclusion from a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// There is no such header, or an empty one.
    Nothing,
    /// The header is there, but its right end is no address.
    Unusable,
    Client(Address),
}

impl Hops {
    /// Add a hop that is no address.
    #[inline(always)]
    pub fn unknown(&mut self) {
        self.flags = PRESENT | self.flags & UNREADABLE;
    }

    /// Add the hop `address`.
    #[inline(always)]
    pub fn address(&mut self, address: Address, is_trusted: bool) {
        self.flags |= PRESENT | ADDRESS;
        self.last = address;
        if !is_trusted {
            self.client = address;
            self.flags |= UNTRUSTED;
        }
    }

    /// Mark the header as not to be trusted.
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
