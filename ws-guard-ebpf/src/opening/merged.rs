//! A 101 that does not begin where a segment does.
//!
//! Answers leave in one segment when the client had no room for the first, or when that ends in it: an
//! interim one, or an earlier request's. While a request is pending, all that the server says is
//! searched. So it is after unread bytes: a request hidden in them is known only by its answer.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::handshake::{END, HeadScanner, MAX_HEAD, SWITCHING, UPGRADE_WEBSOCKET};

use crate::{
    opening::{handshake::read_head, pending_upgrades},
    packet::{Packet, payload::CHUNK},
    stream::walk::Walker,
};

/// Length of the text, in bytes.
const LENGTH: u32 = SWITCHING.len() as u32;
/// Length of the words that are compared, in bytes.
const WORD: u32 = 4;
/// Distance of these words. Wherever the text is, it covers one of them.
const STRIDE: u32 = LENGTH - WORD + 1;
/// Words in a chunk.
const WORDS: u32 = (CHUNK - WORD) / STRIDE + 1;
/// Maximum of bytes of heads that are read behind other bytes in a segment. A head that has more counts
/// as one that switches.
const LONGEST: u32 = 4096;
/// Maximum of heads in a segment that switch to something else. One more counts as a switch.
const MAX_HEADS: u32 = 32;
/// Result of [`find`] in the state: a head that counts as one that switches, and ends elsewhere.
pub const ASSUMED: u32 = 2;

/// Find the head of a 101 that switches to WebSocket, from offset `at` of the state on.
///
/// It is then in the state as after [`read_head`], and the offset of its first byte in `until`.
#[inline(always)]
pub fn find<P: Packet>(walker: &mut Walker<P>) -> bool {
    walker.state.reading.piece =
        if walker.state.reading.at == 0 { pending_upgrades::begun() } else { 0 };
    (walker.state.reading.read, walker.state.reading.patience) = (1, LONGEST);
    walker.state.reading.head = HeadScanner::default();
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = read_candidate::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    let turns =
        unsafe { bpf_loop(MAX_HEADS, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0) };
    let found = walker.state.reading.read != 0;
    let cut = walker.state.reading.head.found & END == 0
        && walker.state.reading.at < walker.packet.bytes();
    if found && (cut || turns == MAX_HEADS as c_long) {
        walker.state.reading.head.found |= END | UPGRADE_WEBSOCKET;
        walker.state.reading.read = ASSUMED;
    }
    pending_upgrades::begins(if found { 0 } else { walker.state.reading.piece });
    found
}

/// Read the next head; 1 ends the loop: there is none, or it may switch to WebSocket.
unsafe extern "C" fn read_candidate<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `find`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    if !find_text(walker) {
        walker.state.reading.read = 0;
        return 1;
    }
    walker.state.reading.until = walker.state.reading.at.wrapping_sub(LENGTH);
    let (from, patience) = (walker.state.reading.at, walker.state.reading.patience);
    read_head(walker, HeadScanner::default(), if patience < LONGEST { patience } else { LONGEST });
    walker.state.reading.patience =
        patience.saturating_sub(walker.state.reading.at.wrapping_sub(from));
    walker.state.reading.piece = 0;
    (walker.state.reading.head.found & (END | UPGRADE_WEBSOCKET) != END) as c_long
}

/// Find [`SWITCHING`] from `at` on, which moves behind it.
///
/// `piece` is the number of its bytes that the server's latest ended with, before and after.
#[inline(always)]
fn find_text<P: Packet>(walker: &mut Walker<P>) -> bool {
    let (from, bytes) = (walker.state.reading.at, walker.packet.bytes());
    let begin = from + LENGTH - 1;
    let short = begin >= bytes;
    if short || walker.state.reading.piece > 0 {
        walker.state.reading.until = if short { bytes } else { begin };
        if read_letters(walker) || short {
            return walker.state.reading.piece == LENGTH;
        }
        (walker.state.reading.at, walker.state.reading.piece) = (from, 0);
    }
    walker.state.reading.until = 0;
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = compare_chunk::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(MAX_HEAD / STRIDE, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0);
    }
    if walker.state.reading.until != 0 {
        return true;
    }
    // The text may begin in front of the latest word, or not end.
    let tail = bytes.saturating_sub(LENGTH - 1);
    let back = walker.state.reading.at.saturating_sub(STRIDE - 1);
    let at = if back < tail { back } else { tail };
    walker.state.reading.at = if at < from { from } else { at };
    walker.state.reading.until = bytes;
    read_letters(walker)
}

/// Compare the words of the next chunk with each part of the text; 1 ends the loop, with `until` behind
/// the text, or 0 where less than a chunk is left.
unsafe extern "C" fn compare_chunk<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `find_text`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let at = walker.state.reading.at;
    let Some(chunk) = walker.packet.chunk(at) else {
        return 1;
    };
    let mut i = 0;
    while i < WORDS {
        let place = (i * STRIDE) as usize;
        let word = [chunk[place], chunk[place + 1], chunk[place + 2], chunk[place + 3]];
        let offset = offset_in_text(u32::from_be_bytes(word));
        if offset < STRIDE {
            let begin = (at + i * STRIDE).wrapping_sub(offset);
            let end = begin.wrapping_add(LENGTH);
            let whole = walker.packet.u64_at(begin) == Some(eight(0))
                && walker.packet.u64_at(begin.wrapping_add(WORD)) == Some(eight(WORD));
            (walker.state.reading.at, walker.state.reading.until) =
                if whole { (end, end) } else { (at + (i + 1) * STRIDE, 0) };
            return whole as c_long;
        }
        i += 1;
    }
    walker.state.reading.at = at + WORDS * STRIDE;
    0
}

/// Offset in the text at which it has this word; [`STRIDE`] where it does not.
#[inline(always)]
const fn offset_in_text(word: u32) -> u32 {
    let mut i = 0;
    while i < STRIDE {
        if word == PARTS[i as usize] {
            return i;
        }
        i += 1;
    }
    STRIDE
}

/// The text's words, by their offset.
const PARTS: [u32; STRIDE as usize] = {
    let (mut parts, mut i) = ([0; STRIDE as usize], 0);
    while i < parts.len() {
        let [a, b, c, d] = [SWITCHING[i], SWITCHING[i + 1], SWITCHING[i + 2], SWITCHING[i + 3]];
        parts[i] = u32::from_be_bytes([a, b, c, d]);
        i += 1;
    }
    parts
};

/// Eight bytes of the text from `from` on, the first one in the high byte.
#[inline(always)]
const fn eight(from: u32) -> u64 {
    let (mut word, mut i) = (0, 0);
    while i < 8 {
        word = word << 8 | SWITCHING[(from + i) as usize] as u64;
        i += 1;
    }
    word
}

/// Read byte by byte from `at` to `until`: `true` when the text ends, `piece` bytes of which came
/// before.
#[inline(never)]
fn read_letters<P: Packet>(walker: &mut Walker<P>) -> bool {
    let turn: unsafe extern "C" fn(u32, *mut Walker<P>) -> c_long = read_letter::<P>;
    // SAFETY: the callback gets the walker back, which outlives the loop.
    unsafe {
        bpf_loop(CHUNK + STRIDE, turn as *mut c_void, core::ptr::from_mut(walker).cast(), 0);
    }
    walker.state.reading.piece == LENGTH
}

/// Compare the next byte with the text's next one, or with its first; 1 ends the loop.
unsafe extern "C" fn read_letter<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `read_letters`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let state = &mut *walker.state;
    if state.reading.at >= state.reading.until || state.reading.piece >= LENGTH {
        return 1;
    }
    let Some(byte) = walker.packet.u8_at(state.reading.at) else {
        return 1;
    };
    state.reading.at += 1;
    // The first one comes only once in the text.
    state.reading.piece = match letter(state.reading.piece) == byte {
        true => state.reading.piece + 1,
        false => (byte == SWITCHING[0]) as u32,
    };
    0
}

/// The text's byte at `at`.
#[inline(always)]
fn letter(at: u32) -> u8 {
    match at {
        0..8 => (eight(0) >> (56 - 8 * at)) as u8,
        _ => (eight(WORD) >> (8 * ((LENGTH - 1) - at)) & 0xFF) as u8,
    }
}
