//! Who a request comes from: the kernel's half of [`ws_guard_common::forwarded`].
//!
//! The reader is in the request under way, [`pending_upgrades::scratch`]; what it concludes is put where
//! [`packet::account`] finds it. Functions with a name in the object's BTF are global ones: the verifier
//! checks each on its own, and not anew at each call.

use aya_ebpf::{bindings::BPF_ANY, btf_maps::lpm_trie::Key};
use ws_guard_common::{
    forwarded::{names::HeaderNames, preface, step},
    handshake::has_line_end,
    maps::{Account, Address, Client, EventKind, HEAD_ONLY, Network, Pending, Policy, Suspect},
};

use crate::{
    context::Context,
    maps::{self, BEGINNINGS, HEADERS, PROXIES, SUSPECTS},
    opening::pending_upgrades,
    packet::{self, SYN, Segment},
    report,
};

/// [`read`]: the byte is taken, and more may follow.
pub const MORE: u32 = 0;
/// [`read`]: it was the last one of the request's head.
pub const END: u32 = 1;
/// [`read`]: no request begins here.
pub const NO_REQUEST: u32 = 2;

/// In place of what [`read`] came to: the segment takes too long to read, and where the request begins is not
/// certain yet.
pub const TOO_COSTLY: u32 = 3;

/// The address is that of a trusted proxy, of which there are `proxies`.
#[inline(never)]
pub fn trusts(address: &Address, proxies: u32) -> bool {
    proxies != 0 && PROXIES.get(&Key::new(Network::ALL_BITS, Network::of(address))).is_some()
}

/// Take `count` bytes, 1 to 8, of the request under way or of what comes in front of it: the first one is
/// the high byte of `word`. Fewer are taken where a line, the head or what is a request ends.
#[inline(always)]
pub fn read(word: u64, count: u32, policy: &Policy) -> Taken {
    Taken(ws_guard_request_word(word, count, policy.headers.into(), policy.proxies))
}

/// What [`read`] did: the number of bytes taken in the low byte, and what the last one came to above it.
#[derive(Clone, Copy)]
pub struct Taken(u32);

impl Taken {
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        self.0 & 0xF
    }

    /// Nothing in them mattered, so that they were taken at once.
    #[inline(always)]
    pub const fn at_once(self) -> bool {
        self.0 & ONE_BY_ONE == 0
    }

    /// How much of the time that a segment may take to read, in bytes; see [`Pending::patience`].
    #[inline(always)]
    pub const fn costs(self) -> u32 {
        let bytes = if self.at_once() { 2 } else { self.bytes() };
        bytes + if self.0 & HOP != 0 { 8 } else { 0 }
    }

    /// [`MORE`], [`END`] or [`NO_REQUEST`].
    #[inline(always)]
    pub const fn came_to(self) -> u32 {
        self.0 >> 8
    }
}

/// In [`Taken`]: the bytes were taken one by one.
const ONE_BY_ONE: u32 = 1 << 4;
/// In [`Taken`]: an address was looked for among those of the proxies.
const HOP: u32 = 1 << 5;

/// [`read`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_request_word(word: u64, count: u32, headers: u32, proxies: u32) -> u32 {
    let (Some(pending), Some(names)) = (pending_upgrades::scratch(), HEADERS.get(headers & 1))
    else {
        return NO_REQUEST << 8;
    };
    if pending.flags & HEAD_ONLY != 0 {
        return head_word(pending, word, count);
    }
    if count == 8 && pending.skip(word, names) {
        return 8;
    }
    let (mut word, mut taken) = (word, 0);
    while taken < 8 {
        let byte = (word >> 56) as u32;
        let mut came_to = request_byte(pending, byte as u8, names);
        taken += 1;
        if came_to & NODE != 0 {
            ws_guard_address_byte(byte);
        } else if came_to & ITEM != 0 {
            ws_guard_address_end(proxies);
            taken |= HOP;
        }
        came_to &= END | NO_REQUEST;
        if taken >= count || came_to != MORE || byte as u8 == b'\n' {
            return taken | ONE_BY_ONE | came_to << 8;
        }
        word <<= 8;
    }
    taken | ONE_BY_ONE
}

/// [`read`] of a request whose client is not read any more.
#[inline(always)]
fn head_word(pending: &mut Pending, word: u64, count: u32) -> u32 {
    if count == 8 && pending.skip_head(word) {
        return 8;
    }
    let (mut word, mut taken) = (word, 0);
    while taken < 8 {
        let byte = (word >> 56) as u32;
        let came_to = ws_guard_head_byte(byte);
        taken += 1;
        word <<= 8;
        // A long line may be skipped from its beginning.
        let long = byte as u8 == b'\n' && !has_line_end(word);
        if taken >= count || came_to != MORE || long {
            return taken | ONE_BY_ONE | came_to << 8;
        }
    }
    taken | ONE_BY_ONE
}

/// In the course of [`read`]: a byte of the head alone.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_head_byte(byte: u32) -> u32 {
    let (Some(pending), byte) = (pending_upgrades::scratch(), byte as u8) else {
        return NO_REQUEST;
    };
    if pending.head.is_empty() && byte != b'G' && byte != b'\r' && byte != b'\n' {
        return NO_REQUEST;
    }
    if pending.head.push(byte) { END } else { MORE }
}

/// How many of the next `most` bytes are fields of the PROXY protocol, which nobody has to see: they are
/// taken.
#[inline(always)]
pub fn skip_fields(most: u32) -> u32 {
    pending_upgrades::scratch().map_or(0, |pending| pending.client.preface.skip(most))
}

/// Take a byte of what comes in front of a ClientHello: [`MORE`], or [`NO_REQUEST`] where it is not of
/// that.
#[inline(always)]
pub fn read_preface(byte: u8) -> u32 {
    let byte = byte as u32;
    let came_to = ws_guard_preface_byte(byte);
    if came_to & NODE != 0 {
        ws_guard_address_byte(byte);
    } else if came_to & ITEM != 0 {
        ws_guard_address_end(0);
    }
    if came_to & (NO_REQUEST | REQUEST) != 0 { NO_REQUEST } else { MORE }
}

/// In the course of [`read`]: the byte is one of an address.
const NODE: u32 = 4;
/// Likewise: an item ends.
const ITEM: u32 = 8;

/// What a [`step`] means here.
#[inline(always)]
const fn bits(step: u8) -> u32 {
    match step {
        step::NODE => NODE,
        step::ITEM => ITEM,
        _ => MORE,
    }
}

/// A byte of [`read`].
#[inline(always)]
fn request_byte(pending: &mut Pending, byte: u8, names: &HeaderNames) -> u32 {
    if !pending.client.preface.is_over() {
        let came_to = ws_guard_preface_byte(byte.into());
        if came_to & REQUEST == 0 {
            return came_to;
        }
    }
    if pending.head.is_empty() && byte != b'G' && byte != b'\r' && byte != b'\n' {
        return NO_REQUEST;
    }
    let step = pending.client.step(byte, names);
    let ends = if pending.head.push(byte) { END } else { MORE };
    bits(step) | ends
}

/// In the course of [`read`]: the byte is none of the preface.
const REQUEST: u32 = 16;

/// A byte of the preface; [`REQUEST`] where it does not belong to it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_preface_byte(byte: u32) -> u32 {
    let Some(pending) = pending_upgrades::scratch() else {
        return NO_REQUEST;
    };
    let preface = &mut pending.client.preface;
    let step = preface.push(byte as u8);
    if preface.stage == preface::stage::BAD {
        // Whatever follows is read no further, and is none of a client that is known.
        preface.stage = preface::stage::OVER;
        return NO_REQUEST;
    }
    if step == step::REQUEST { REQUEST } else { bits(step) }
}

/// `ClientReader::node` of the request under way.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_address_byte(byte: u32) -> u32 {
    if let Some(pending) = pending_upgrades::scratch() {
        pending.client.node(byte as u8);
    }
    0
}

/// `ClientReader::item` of the request under way, with so many trusted proxies.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_address_end(proxies: u32) -> u32 {
    if let Some(pending) = pending_upgrades::scratch() {
        pending.client.item(&|address: &Address| trusts(address, proxies));
    }
    0
}

/// The segment is the first one of its connection that has data.
#[inline(always)]
pub fn is_first(segment: &Segment) -> bool {
    if segment.flags & SYN != 0 {
        return true;
    }
    match BEGINNINGS.get_ptr(&segment.key) {
        // SAFETY: a single word. An LRU entry may be used again for another key meanwhile: then the
        // number does not fit.
        Some(beginning) => unsafe { (*beginning).client_next == segment.seq },
        None => false,
    }
}

/// The connection has no flow: until more is known its limits are about the peer. `None` only where the
/// maps are not to be had.
#[inline(always)]
pub fn peer() -> Option<&'static Account> {
    ws_guard_identify_peer();
    packet::account().map(|account| &*account)
}

/// [`peer`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_identify_peer() -> u32 {
    let (Some(segment), Some(account)) = (packet::segment(), packet::account()) else {
        return 0;
    };
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return 0;
    };
    *account = Account::of(Client::of_peer(&segment.key.client), policy);
    0
}

/// Conclude who the connection's request comes from: [`packet::account`] has it then. Of a request that
/// was not read to its end only what came in front of it counts. `answered`: the server believes that
/// there is such a connection.
#[inline(always)]
pub fn conclude(answered: bool) {
    ws_guard_identify_client(answered.into());
}

/// [`conclude`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_identify_client(answered: u32) -> u32 {
    let (Some(segment), Some(account)) = (packet::segment(), packet::account()) else {
        return 0;
    };
    let (Some(policy), Some(pending)) =
        (maps::policy_of(segment.key.server_port), pending_upgrades::scratch())
    else {
        return 0;
    };
    let key = &segment.key;
    let trust = |address: &Address| trusts(address, policy.proxies);
    if pending.client.preface.said == preface::said::CLIENT {
        if answered != 0 && trusts(&key.client, policy.proxies) {
            pending_upgrades::prefaces(segment);
        }
    } else if pending.client.claimed().is_some() && pending_upgrades::has_prefaces(segment) {
        // It was forgotten, and what the headers say may be the client's own words.
        pending.client.spoil();
    }
    account.client = pending.client.client(&key.client, key.client_port, &trust);
    account.source = account.client.source(policy);
    0
}

/// The server has answered a request of the peer: if that is no trusted proxy, and the request names a
/// client, it may be one that has to be.
#[cold]
#[inline(never)]
pub fn suspect(context: &Context) {
    let Some(pending) = pending_upgrades::scratch() else {
        return;
    };
    let Some(Some(named)) = pending.client.claimed() else {
        return;
    };
    let peer = &context.key().client;
    if named == *peer || trusts(peer, context.policy.proxies) {
        return;
    }
    if SUSPECTS.get_ptr(peer).is_none() {
        let _ = SUSPECTS.insert(peer, &Suspect::default(), BPF_ANY.into());
    }
    let Some(known) = SUSPECTS.get_ptr_mut(peer) else {
        return;
    };
    // SAFETY: a map value, which stays mapped while a program runs. Two CPUs at once may lose a
    // request, or tell of a suspicion twice.
    let known = unsafe { &mut *known };
    known.scope = context.policy.scope;
    if known.named(&named, context.now) {
        let clients = known.count() as u64;
        let source = context.source();
        report::source_event(
            EventKind::ProxySuspected,
            source,
            Some(context.key()),
            context.now,
            clients,
            0,
        );
    }
}
