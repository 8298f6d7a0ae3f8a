//! The client behind a trusted proxy, from PROXY protocol, `Forwarded` and `X-Forwarded-For`.
//!
//! [`ClientReader`] takes the beginning of a connection and the head of a request byte by byte,
//! independent of segments. The kernel programs and the companion server use the same reader. Its
//! result is a [`Client`].
//!
//! - [`address`] reads one address, [`field`] the value of a header, [`preface`] the PROXY protocol;
//! - [`names`]: the headers that are read; [`hops`]: the client in a chain of addresses.
//!
//! A header counts only where the peer is a trusted proxy, as far as each hop is one, and only if
//! all headers present agree: a proxy writes one of them, and forwards the others as the client
//! wrote them.

pub mod address;
pub mod field;
pub mod hops;
pub mod names;
pub mod preface;

use self::{
    field::FieldReader,
    hops::{Hops, Said},
    names::{HEADERS, HeaderNames, LONGEST_NAME, Name},
    preface::Preface,
};
use crate::maps::{Address, Client, identity};

/// Set of trusted proxies.
pub trait Trust {
    fn trusts(&self, address: &Address) -> bool;
}

impl<F: Fn(&Address) -> bool> Trust for F {
    #[inline(always)]
    fn trusts(&self, address: &Address) -> bool {
        self(address)
    }
}

/// Action after taking a byte.
/// Each is a function of its own in the kernel programs; otherwise the verifier would check every
/// combination of paths through both.
pub mod step {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// It belongs to an address: [`super::ClientReader::node`].
    pub const NODE: u8 = 1;
    /// An item ends: [`super::ClientReader::item`].
    pub const ITEM: u8 = 2;
    /// It does not belong to the preface, but to the request after it.
    pub const REQUEST: u8 = 3;
}

/// Position of the reader in a line.
mod line {
    /// In the header's name, or in the request line.
    pub const NAME: u8 = 0;
    /// In the value of a header that is read.
    pub const VALUE: u8 = 1;
    /// In a line that does not matter.
    pub const SKIP: u8 = 2;
}

/// Reader for the identity of a request's client. All zero: before the connection's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClientReader {
    /// Preface of the first request.
    pub preface: Preface,
    /// Name in the current line.
    name: Name,
    /// Chains in the headers, by their index in [`HeaderNames`].
    hops: [Hops; HEADERS],
    field: FieldReader,
    /// One of [`line`](mod@line).
    line: u8,
    /// Bytes of the line's name so far.
    length: u8,
    /// Header of this line or, before its name is read, of the line before: from 1, 0 for another
    /// one.
    header: u8,
    _pad: u8,
}

impl ClientReader {
    /// Reset for the next request, except for the preface: only a request's own headers count, also
    /// on a connection with several.
    #[inline(always)]
    pub fn next_request(&mut self) {
        // Field by field: the kernel programs have no stack for a whole value.
        self.name = Name::default();
        self.hops[0] = Hops::default();
        self.hops[1] = Hops::default();
        // The request line is no header.
        (self.line, self.length, self.header) = (line::SKIP, 0, 0);
    }

    /// Mark the headers as unknown: the request was not read to its end.
    #[inline(always)]
    pub fn spoil(&mut self) {
        self.hops[0].spoil();
    }

    /// Skip the preface: there is none, or it was read elsewhere.
    #[inline(always)]
    pub fn skip_preface(&mut self) {
        self.preface.stage = preface::stage::OVER;
    }

    /// Take a byte of the connection's beginning, while the preface is not over. `true` when it
    /// belongs to the preface; otherwise it is the request's.
    pub fn push_preface(&mut self, byte: u8) -> bool {
        let step = self.preface.push(byte);
        self.follow(step, byte, &|_: &Address| false);
        step != step::REQUEST
    }

    /// Take a byte of the request's head, from the request line on.
    pub fn push(&mut self, byte: u8, names: &HeaderNames, trust: &impl Trust) {
        let step = self.step(byte, names);
        self.follow(step, byte, trust);
    }

    /// Second half of taking a byte.
    fn follow(&mut self, step: u8, byte: u8, trust: &impl Trust) {
        match step {
            step::NODE => self.node(byte),
            step::ITEM => self.item(trust),
            _ => {}
        }
    }

    /// First half of [`ClientReader::push`]: one of [`step`].
    #[inline(always)]
    pub fn step(&mut self, byte: u8, names: &HeaderNames) -> u8 {
        if byte == b'\n' {
            return self.end_line();
        }
        match self.line {
            line::NAME => self.name_byte(byte, names),
            line::VALUE => return self.field.push(byte),
            _ => {}
        }
        step::NOTHING
    }

    /// Check whether eight bytes without a line end are irrelevant, see [`ClientReader::skip`];
    /// `folded` as for [`HeadScanner::skips`].
    ///
    /// [`HeadScanner::skips`]: crate::handshake::HeadScanner::skips
    #[inline(always)]
    pub const fn skips(&self, word: u64, folded: u64, names: &HeaderNames) -> bool {
        let first = (word >> 56) as u8;
        // White space continues the line before.
        let own = first != b' ' && first != b'\t' && first != b'\r';
        let begins = self.line == line::NAME && self.length == 0;
        self.line == line::SKIP || begins && own && !names.may_begin(folded)
    }

    /// Take eight bytes for which [`ClientReader::skips`] is true.
    #[inline(always)]
    pub const fn skip(&mut self) {
        (self.line, self.header) = (line::SKIP, 0);
    }

    /// Take a byte of an address.
    #[inline(always)]
    pub fn node(&mut self, byte: u8) {
        self.field.address.push(byte);
    }

    /// End an item of the current header, or the source address of the preface.
    #[inline(always)]
    pub fn item(&mut self, trust: &impl Trust) {
        if self.preface.is_over() {
            let hops = &mut self.hops[(self.header.wrapping_sub(1) & 1) as usize];
            self.field.take(hops, |address| trust.trusts(address));
        } else {
            let address = self.field.address.finish();
            self.preface.source(address);
        }
    }

    #[inline(always)]
    fn name_byte(&mut self, byte: u8, names: &HeaderNames) {
        let at = self.length;
        if byte == b':' {
            self.header = names.find(&self.name);
            let forwarded = names.forwarded >> (self.header.wrapping_sub(1) & 1) & 1 != 0;
            self.field.begin(forwarded);
            self.line = if self.header == 0 { line::SKIP } else { line::VALUE };
            return;
        }
        if at == 0 && (byte == b' ' || byte == b'\t') {
            // The line before continues (obsolete, RFC 9112, 5.2): parsers differ about that.
            self.hops_mut(Hops::spoil);
            self.line = line::SKIP;
            return;
        }
        // A zero would be taken for the end of the name.
        if at >= LONGEST_NAME as u8 || byte == 0 {
            self.line = line::SKIP;
            self.header = 0;
            return;
        }
        let lower = byte | if byte.wrapping_sub(b'A') < 26 { 0x20 } else { 0 };
        self.name[(at >> 3 & 3) as usize] |= (lower as u64) << (56 - (at & 7) * 8);
        self.length = at + 1;
    }

    #[inline(always)]
    fn end_line(&mut self) -> u8 {
        let in_value = self.line == line::VALUE;
        let balanced = self.field.is_balanced();
        if in_value && !balanced {
            self.hops_mut(Hops::spoil);
        }
        if self.line == line::NAME {
            self.header = 0;
        }
        self.line = line::NAME;
        self.length = 0;
        self.name = Name::default();
        if in_value && balanced { step::ITEM } else { step::NOTHING }
    }

    /// Change the chain of the current header, if it is one that is read.
    #[inline(always)]
    fn hops_mut(&mut self, change: impl FnOnce(&mut Hops)) {
        if self.header != 0 {
            change(&mut self.hops[(self.header.wrapping_sub(1) & 1) as usize]);
        }
    }

    /// Address in the headers, regardless of their sender.
    /// `None` without headers, otherwise the address that they agree on.
    #[inline(always)]
    pub fn claimed(&self) -> Option<Option<Address>> {
        match (self.hops[0].said(), self.hops[1].said()) {
            (Said::Nothing, Said::Nothing) => None,
            (Said::Client(one), Said::Nothing) | (Said::Nothing, Said::Client(one)) => {
                Some(Some(one))
            }
            (Said::Client(one), Said::Client(other)) if one == other => Some(Some(one)),
            _ => Some(None),
        }
    }

    /// The client of a request on a connection of `peer`, from `port` (network byte order).
    #[inline(always)]
    pub fn client(&self, peer: &Address, port: u16, trust: &impl Trust) -> Client {
        let own = Client::of_connection(peer, port);
        let mut base = Client::of_peer(peer);
        if !trust.trusts(peer) {
            return base;
        }
        match self.preface.said {
            preface::said::CLIENT if self.preface.is_over() => {
                base = Client::of(&self.preface.client, identity::PROXY_PROTOCOL);
                if !trust.trusts(&self.preface.client) {
                    return base;
                }
            }
            // An incomplete address is none.
            preface::said::CLIENT | preface::said::UNUSABLE => return own,
            _ => {}
        }
        match self.claimed() {
            None => base,
            Some(Some(client)) => Client::of(&client, identity::FORWARDED),
            Some(None) => own,
        }
    }
}

#[cfg(test)]
mod tests;
