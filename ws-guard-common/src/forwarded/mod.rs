//! The client behind a trusted proxy: what PROXY protocol, `Forwarded` and `X-Forwarded-For` say.
//!
//! [`ClientReader`] takes the beginning of a connection and the head of a request byte by byte, so
//! that it does not matter how segments cut them. The kernel programs and the companion server use
//! the same reader. [`Client`] is what it concludes.
//!
//! - [`address`] reads one address, [`field`] the value of a header, [`preface`] the PROXY protocol;
//! - [`names`] says which headers are read, [`hops`] which address of a chain is the client.
//!
//! A header is believed only where the peer is a trusted proxy, as far as each hop is one, and only
//! if all headers that are there agree: a proxy writes one of them, and hands on the others as the
//! client wrote them.

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

/// Which addresses are trusted proxies.
pub trait Trust {
    fn trusts(&self, address: &Address) -> bool;
}

impl<F: Fn(&Address) -> bool> Trust for F {
    #[inline(always)]
    fn trusts(&self, address: &Address) -> bool {
        self(address)
    }
}

/// What is to be done about a byte that was taken. The kernel programs do each in a function of its own,
/// or their verifier would follow every way through one for every way through the other.
pub mod step {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// It belongs to an address: [`super::ClientReader::node`].
    pub const NODE: u8 = 1;
    /// An item ends: [`super::ClientReader::item`].
    pub const ITEM: u8 = 2;
    /// It does not belong to the preface, but to the request behind it.
    pub const REQUEST: u8 = 3;
}

/// Where in a line the reader is.
mod line {
    /// In the header's name, or in the request line.
    pub const NAME: u8 = 0;
    /// In the value of a header that is read.
    pub const VALUE: u8 = 1;
    /// In a line that does not matter.
    pub const SKIP: u8 = 2;
}

/// Reads who a request comes from. All zero: before the connection's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClientReader {
    /// What came in front of the first request.
    pub preface: Preface,
    /// The name in the line at hand.
    name: Name,
    /// What the headers say, by their place in [`HeaderNames`].
    hops: [Hops; HEADERS],
    field: FieldReader,
    /// One of [`line`].
    line: u8,
    /// Bytes of the line's name so far.
    length: u8,
    /// The header whose line this is, or was the line before this one; from 1, 0 for another one.
    header: u8,
    _pad: u8,
}

impl ClientReader {
    /// Forget the request, but not what came in front of the first one: only a request's own headers
    /// count, also on a connection that is used for several.
    #[inline(always)]
    pub fn next_request(&mut self) {
        // Field by field: the kernel programs have no stack for a whole one.
        self.name = Name::default();
        self.hops[0] = Hops::default();
        self.hops[1] = Hops::default();
        // The request line is no header.
        (self.line, self.length, self.header) = (line::SKIP, 0, 0);
    }

    /// The request was not read to its end: what its headers would have said is not known.
    #[inline(always)]
    pub fn spoil(&mut self) {
        self.hops[0].spoil();
    }

    /// The connection does not begin with a preface, or that was read elsewhere.
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

    /// The second half of taking a byte.
    fn follow(&mut self, step: u8, byte: u8, trust: &impl Trust) {
        match step {
            step::NODE => self.node(byte),
            step::ITEM => self.item(trust),
            _ => {}
        }
    }

    /// The first half of [`ClientReader::push`]: one of [`step`].
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

    /// Whether eight bytes without a line end matter to nothing that is read, see
    /// [`ClientReader::skip`]; `folded` as for [`HeadScanner::skips`].
    ///
    /// [`HeadScanner::skips`]: crate::handshake::HeadScanner::skips
    #[inline(always)]
    pub const fn skips(&self, word: u64, folded: u64, names: &HeaderNames) -> bool {
        let first = (word >> 56) as u8;
        // White space goes on with the line before.
        let own = first != b' ' && first != b'\t' && first != b'\r';
        let begins = self.line == line::NAME && self.length == 0;
        self.line == line::SKIP || begins && own && !names.may_begin(folded)
    }

    /// Take eight bytes for which [`ClientReader::skips`] is true.
    #[inline(always)]
    pub const fn skip(&mut self) {
        (self.line, self.header) = (line::SKIP, 0);
    }

    /// A byte of an address.
    #[inline(always)]
    pub fn node(&mut self, byte: u8) {
        self.field.address.push(byte);
    }

    /// An item of the header at hand ends, or the source address of the preface.
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
            // The line before goes on (obsolete, RFC 9112, 5.2): it may be read in two ways.
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

    /// Change the hops of the header at hand, if it is one that is read.
    #[inline(always)]
    fn hops_mut(&mut self, change: impl FnOnce(&mut Hops)) {
        if self.header != 0 {
            change(&mut self.hops[(self.header.wrapping_sub(1) & 1) as usize]);
        }
    }

    /// What the headers say, whoever sent them. `None` where there are none; otherwise the address
    /// that they agree on.
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

    /// Who the request on a connection of `peer`, from `port` (network byte order), comes from.
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
            // The beginning of an address is none.
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
