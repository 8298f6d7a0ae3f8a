//! Segments of a request that come again: see [`ws_guard_common::maps::Pieces`].

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop};
use ws_guard_common::{
    handshake::MAX_HEAD,
    maps::{Digest, PIECES, Pending, Piece},
};

use crate::{
    opening::{pending_upgrades, role},
    packet::{self, Packet, Segment},
    stream::walk::Walker,
};

/// Bytes in a word.
const WORD: u32 = 8;

/// Add the segment's bytes from `known` on to the pending request's. Not for clients whose address may be spoofed: it would
/// cost their senders nothing.
#[inline(always)]
pub fn add<P: Packet>(
    segment: &Segment,
    pending: &mut Pending,
    walker: &mut Walker<P>,
    known: u32,
) {
    if pending.real == 0 {
        return;
    }
    let pieces = &mut pending.pieces;
    if pieces.count == 0 {
        // SAFETY: no arguments, no effects.
        let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
        pieces.key = (high as u64) << 32 | low as u64;
    }
    let len = segment.len.wrapping_sub(known);
    let digest = digest(walker, pieces.key, known, len);
    pieces.push(Piece { from: segment.seq.wrapping_add(known), len, digest });
}

/// Number of bytes that repeat one or more of the pending request's segments, unchanged: all of the
/// segment's, or those in front of new ones. 0 where others are in their place.
#[cold]
#[inline(never)]
pub fn repeated<P: Packet>(segment: &Segment, pending: &Pending, walker: &mut Walker<P>) -> u32 {
    if segment.seq == pending.next || !role::follows(pending.owner) {
        return 0;
    }
    let Some(first) = pending.pieces.find(segment.seq) else {
        return 0;
    };
    (walker.state.reading.piece, walker.state.reading.until) = (first, 0);
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = piece_comes_again::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(PIECES, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0);
    }
    let until = walker.state.reading.until;
    let whole = until == segment.len || segment.seq.wrapping_add(until) == pending.next;
    if whole { until } else { 0 }
}

/// Compare the next piece, from `until` on, which it moves behind it, or to 0 if it is another one;
/// 1 ends the loop.
unsafe extern "C" fn piece_comes_again<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `repeated`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let (Some(pending), Some(segment)) = (pending_upgrades::scratch(), packet::segment()) else {
        return 1;
    };
    let at = walker.state.reading.until;
    if segment.seq.wrapping_add(at) == pending.next {
        // What follows is new.
        return 1;
    }
    let piece = pending.pieces.at(walker.state.reading.piece);
    walker.state.reading.piece += 1;
    let follows = piece.from == segment.seq.wrapping_add(at);
    let fits = piece.len <= segment.len && at + piece.len <= segment.len;
    if !follows || !fits || digest(walker, pending.pieces.key, at, piece.len) != piece.digest {
        walker.state.reading.until = 0;
        return 1;
    }
    (walker.state.reading.until == segment.len) as c_long
}

/// Digest of `len` bytes of the payload at offset `from`.
#[inline(never)]
fn digest<P: Packet>(walker: &mut Walker<P>, key: u64, from: u32, len: u32) -> u64 {
    walker.state.reading.digest = Digest::new(key);
    (walker.state.reading.at, walker.state.reading.until) = (from, from + len);
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = digest_word::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(
            MAX_HEAD / WORD + WORD,
            turn as *mut c_void,
            core::ptr::from_mut(walker).cast(),
            0,
        );
    }
    walker.state.reading.digest.end()
}

/// Take the next word, or the next byte of an incomplete one; 1 ends the loop.
unsafe extern "C" fn digest_word<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `digest`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let state = &mut *walker.state;
    let left = state.reading.until.saturating_sub(state.reading.at);
    if left == 0 {
        return 1;
    }
    let (word, count) = match walker.packet.u64_at(state.reading.at) {
        Some(word) if left >= WORD => (word, WORD),
        // Not to be taken for a word with the same bytes.
        _ => match walker.packet.u8_at(state.reading.at) {
            Some(byte) => (1 << 32 | byte as u64, 1),
            None => return 1,
        },
    };
    state.reading.digest.push(word);
    state.reading.at += count;
    0
}
