//! Identity of a request's client: the kernel's half of [`ws_guard_common::forwarded`].
//!
//! The reader is part of the pending request, [`pending_upgrades::scratch`]; its conclusion is put
//! into [`packet::account`]. Functions with a name in the object's BTF are global ones: the
//! verifier checks each once, not at each call.

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

/// [`read`]'s result: the byte is taken, and more may follow.
pub const MORE: u32 = 0;
/// [`read`]'s result: the last byte of the request's head.
pub const END: u32 = 1;
/// [`read`]'s result: no request begins here.
pub const NO_REQUEST: u32 = 2;

/// In place of [`read`]'s result: the segment takes too long to read, and it is not certain yet
/// where the request begins.
pub const TOO_COSTLY: u32 = 3;

/// Check whether the address is one of the `proxies` trusted proxies.
#[inline(never)]
pub fn trusts(address: &Address, proxies: u32) -> bool {
    proxies != 0 && PROXIES.get(&Key::new(Network::ALL_BITS, Network::of(address))).is_some()
}

/// Take `count` bytes, 1 to 8, of the pending request or its preface; the first is the high byte of
/// `word`. Fewer are taken at the end of a line, of the head or of the request.
#[inline(always)]
pub fn read(word: u64, count: u32, policy: &Policy) -> Taken {
    Taken(ws_guard_request_word(word, count, policy.headers.into(), policy.proxies))
}

/// Result of [`read`]: the number of bytes taken in the low byte, and the last byte's result above
/// it.
#[derive(Clone, Copy)]
pub struct Taken(u32);

impl Taken {
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        self.0 & 0xF
    }

    /// Check whether the bytes were irrelevant, and taken at once, and so is the rest of their line.
    #[inline(always)]
    pub const fn at_once(self) -> bool {
        self.0 & ONE_BY_ONE == 0
    }

    /// Cost in bytes, of the budget for reading a segment; see [`Pending::patience`].
    #[inline(always)]
    pub const fn costs(self) -> u32 {
        let bytes = if self.at_once() { 2 } else { self.bytes() };
        bytes + if self.0 & HOP != 0 { 4 } else { 0 }
    }

    /// [`MORE`], [`END`] or [`NO_REQUEST`].
    #[inline(always)]
    pub const fn came_to(self) -> u32 {
        self.0 >> 8
    }
}

/// In [`Taken`]: the bytes were taken one by one, or in a name.
const ONE_BY_ONE: u32 = 1 << 4;
/// In [`Taken`]: an address was looked up among those of the proxies.
const HOP: u32 = 1 << 5;

/// [`read`], as a global function.
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
        return skipped(pending);
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

/// Eight bytes that were irrelevant; their line's rest may be, too.
#[inline(always)]
fn skipped(pending: &Pending) -> u32 {
    8 | if pending.head.skips_line() { 0 } else { ONE_BY_ONE }
}

/// [`read`] of a request whose client is no longer read.
#[inline(always)]
fn head_word(pending: &mut Pending, word: u64, count: u32) -> u32 {
    if count == 8 && pending.skip_head(word) {
        return skipped(pending);
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

/// Internal to [`read`]: a byte for the scanner of the head.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_head_byte(byte: u32) -> u32 {
    let (Some(pending), byte) = (pending_upgrades::scratch(), byte as u8) else {
        return NO_REQUEST;
    };
    if !pending.head.begins(byte) {
        return NO_REQUEST;
    }
    if pending.head.push(byte) { END } else { MORE }
}

/// Skip irrelevant fields of the PROXY protocol within the next `most` bytes.
/// Returns the number of bytes skipped.
#[inline(always)]
pub fn skip_fields(most: u32) -> u32 {
    pending_upgrades::scratch().map_or(0, |pending| pending.client.preface.skip(most))
}

/// Take a byte of the preface of a ClientHello: [`MORE`], or [`NO_REQUEST`] where it does not
/// belong to one.
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

/// Internal to [`read`]: the byte belongs to an address.
const NODE: u32 = 4;
/// Internal to [`read`]: an item ends.
const ITEM: u32 = 8;

/// Bits for a [`step`].
#[inline(always)]
const fn bits(step: u8) -> u32 {
    match step {
        step::NODE => NODE,
        step::ITEM => ITEM,
        _ => MORE,
    }
}

/// Take a byte in [`read`].
#[inline(always)]
fn request_byte(pending: &mut Pending, byte: u8, names: &HeaderNames) -> u32 {
    if !pending.client.preface.is_over() {
        let came_to = ws_guard_preface_byte(byte.into());
        if came_to & REQUEST == 0 {
            return came_to;
        }
    }
    let ends = ws_guard_head_byte(byte.into());
    if ends == NO_REQUEST {
        return ends;
    }
    let step = pending.client.step(byte, names);
    bits(step) | ends
}

/// Internal to [`read`]: the byte does not belong to the preface.
const REQUEST: u32 = 16;

/// Take a byte of the preface; [`REQUEST`] where it does not belong to it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_preface_byte(byte: u32) -> u32 {
    let Some(pending) = pending_upgrades::scratch() else {
        return NO_REQUEST;
    };
    let preface = &mut pending.client.preface;
    let step = preface.push(byte as u8);
    if preface.stage == preface::stage::BAD {
        // The rest is not read, and its client stays unknown.
        preface.stage = preface::stage::OVER;
        return NO_REQUEST;
    }
    if step == step::REQUEST { REQUEST } else { bits(step) }
}

/// `ClientReader::node` of the pending request.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_address_byte(byte: u32) -> u32 {
    if let Some(pending) = pending_upgrades::scratch() {
        pending.client.node(byte as u8);
    }
    0
}

/// `ClientReader::item` of the pending request; `proxies` is the number of trusted proxies.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_address_end(proxies: u32) -> u32 {
    if let Some(pending) = pending_upgrades::scratch() {
        pending.client.item(&|address: &Address| trusts(address, proxies));
    }
    0
}

/// Check whether the segment is the first one of its connection with data.
#[inline(always)]
pub fn is_first(segment: &Segment) -> bool {
    if segment.flags & SYN != 0 {
        return true;
    }
    match BEGINNINGS.get_ptr(&segment.key) {
        // SAFETY: a single word. An LRU entry may be reused for another key meanwhile: then the
        // number does not match.
        Some(unopened) => unsafe { (*unopened).began.client_next == segment.seq },
        None => false,
    }
}

/// Account of a connection without a flow: its peer's.
/// `None` only where the maps are not available.
#[inline(always)]
pub fn peer() -> Option<&'static Account> {
    ws_guard_identify_peer();
    packet::account().map(|account| &*account)
}

/// [`peer`], as a global function.
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

/// Conclude the identity of the request's client, into [`packet::account`].
/// Of a request that was not read to its end only the preface counts. `answered`: the server
/// confirms the connection.
#[inline(always)]
pub fn conclude(answered: bool) {
    ws_guard_identify_client(answered.into());
}

/// [`conclude`], as a global function.
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
        // The preface was forgotten, and the headers may be the client's own words.
        pending.client.spoil();
    }
    account.client = pending.client.client(&key.client, key.client_port, &trust);
    account.source = account.client.source(policy);
    0
}

/// Record a suspected proxy: a peer that is not trusted, with an answered request that names a
/// client.
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
    // request, or report a suspicion twice.
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
