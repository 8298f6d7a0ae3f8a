//! Copy of out-of-order segments: copying, comparing, walking.
//!
//! All of it is about the copy that this CPU has [entered](crate::stream::out_of_order::enter).
//! Positions of loops are in [`crate::cpu::State`], as everywhere.

use core::{
    ffi::{c_long, c_void},
    hint::black_box,
};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    frame::{Header, Violations},
    out_of_order::{BYTES, CUTS, Held, PIECE},
    tracker::{self, Step, Walk},
};

use crate::{
    cpu,
    packet::Packet,
    report::{self, Side},
    stream::{out_of_order::entered, trail, walk::MAX_STEPS},
};

/// [`step`]: count nothing.
const LOOK: u32 = 0;
/// [`step`]: count headers' violations.
pub const COUNT: u32 = 1;
/// [`step`]'s result: call again.
pub const MORE: u32 = Step::More as u32;
/// [`step`]'s result: the walk is finished.
pub const DONE: u32 = Step::Done as u32;
/// Maximum of steps through all segments of a copy.
pub const MAX_TURNS: u32 = MAX_STEPS + CUTS as u32;

/// Bytes per comparison.
const WORD: u32 = 8;

/// Offset masked for the verifier to be inside the copy, with [`PIECE`] bytes after it.
#[inline(always)]
fn inside(at: u32) -> usize {
    (black_box(at) & (BYTES - 1)) as usize
}

/// `N` bytes of the copy at `at`.
#[inline(always)]
fn read<const N: usize>(slot: &Held, at: u32) -> [u8; N] {
    const { assert!(N <= PIECE as usize) };
    // SAFETY: inside the copy and its spare bytes; bytes need no alignment.
    unsafe { slot.bytes.as_ptr().add(inside(at)).cast::<[u8; N]>().read_unaligned() }
}

/// Compare `len` bytes of the packet's payload from `from` on with the copy at `to`.
#[inline(always)]
pub fn is_same<P: Packet>(packet: &P, from: u32, to: u32, len: u32) -> bool {
    let turn: unsafe extern "C" fn(u32, *const P) -> c_long = same_turn::<P>;
    run(packet, from, to, len, BYTES, turn)
}

/// Copy `len` bytes of the packet's payload from `from` on into the copy at `to`.
#[inline(always)]
pub fn copy<P: Packet>(packet: &P, from: u32, to: u32, len: u32) -> bool {
    let turn: unsafe extern "C" fn(u32, *const P) -> c_long = copy_turn::<P>;
    run(packet, from, to, len, BYTES / PIECE + 1, turn)
}

/// Repeat `turn` until nothing is left; `false` if it ends earlier.
#[inline(always)]
fn run<P: Packet>(
    packet: &P,
    from: u32,
    to: u32,
    len: u32,
    turns: u32,
    turn: unsafe extern "C" fn(u32, *const P) -> c_long,
) -> bool {
    let Some((state, _)) = entered() else {
        return false;
    };
    (state.gap.from, state.gap.to, state.gap.bytes) = (from, to, len);
    // SAFETY: the callback gets `packet` back, which outlives the loop.
    unsafe {
        bpf_loop(turns, turn as *mut c_void, core::ptr::from_ref(packet).cast_mut().cast(), 0);
    }
    state.gap.bytes == 0
}

/// Compare the next bytes; 1 ends the loop.
unsafe extern "C" fn same_turn<P: Packet>(_index: u32, packet: *const P) -> c_long {
    // SAFETY: `run` passed it.
    let packet = unsafe { &*packet };
    let Some((state, slot)) = entered() else {
        return 1;
    };
    let (from, to, left) = (state.gap.from, state.gap.to, state.gap.bytes);
    let size = if left >= WORD { WORD } else { 1 };
    let same = if left >= WORD {
        packet.u64_at(from) == Some(u64::from_be_bytes(read(slot, to)))
    } else {
        packet.u8_at(from) == Some(read::<1>(slot, to)[0])
    };
    if left == 0 || !same {
        return 1;
    }
    state.gap.from = from.wrapping_add(size);
    state.gap.to = to.wrapping_add(size);
    state.gap.bytes = left - size;
    0
}

/// Copy the next piece; 1 ends the loop.
unsafe extern "C" fn copy_turn<P: Packet>(_index: u32, packet: *const P) -> c_long {
    // SAFETY: `run` passed it.
    let packet = unsafe { &*packet };
    let Some((state, slot)) = entered() else {
        return 1;
    };
    let (from, to, left) = (state.gap.from, state.gap.to, state.gap.bytes);
    // As in `payload::cover`: the verifier has to see both bounds.
    let last = black_box(if left < PIECE { left } else { PIECE }.wrapping_sub(1));
    if last >= PIECE {
        return 1;
    }
    let size = last + 1;
    // SAFETY: `PIECE` bytes from there on belong to the copy.
    if !unsafe { packet.load(from, slot.bytes.as_mut_ptr().add(inside(to)), size) } {
        return 1;
    }
    state.gap.from = from.wrapping_add(size);
    state.gap.to = to.wrapping_add(size);
    state.gap.bytes = left.wrapping_sub(size);
    0
}

/// Run [`crate::cpu::Gap::walk`] to its end without counting.
/// `false` when that fails.
#[inline(always)]
pub fn look() -> bool {
    trail::looks(true);
    let turn: unsafe extern "C" fn(u32, *mut c_void) -> c_long = look_turn;
    // SAFETY: the callback uses nothing of this function.
    unsafe {
        bpf_loop(MAX_STEPS, turn as *mut c_void, core::ptr::null_mut(), 0);
    }
    trail::looks(false);
    matches!(cpu::resume(), Some(state) if state.gap.step == DONE)
}

/// One step; 1 ends the loop.
unsafe extern "C" fn look_turn(_index: u32, _none: *mut c_void) -> c_long {
    (step(LOOK) != MORE) as c_long
}

/// One step of that walk: [`MORE`], [`DONE`] or something else.
#[inline(always)]
pub fn step(what: u32) -> u32 {
    ws_guard_held_step(what)
}

/// [`step`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_step(what: u32) -> u32 {
    let Some((state, slot)) = entered() else {
        return Step::Unreadable as u32;
    };
    // The server has it already, so it passes.
    state.gap.walk.budget = Walk::UNLIMITED;
    let at = state.gap.walk.base().wrapping_sub(slot.region.begin);
    let mut bytes = Kept { slot, at, len: state.gap.walk.len(), counts: what };
    state.gap.step = state.gap.walk.step(&mut bytes) as u32;
    if state.gap.walk.seen.count != 0 {
        trail::trace_seen(true);
    }
    state.gap.step
}

/// A segment in the copy.
struct Kept {
    slot: &'static Held,
    /// Its offset in the copy.
    at: u32,
    len: u32,
    counts: u32,
}

impl Kept {
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if at >= self.len || self.len - at < N as u32 {
            return None;
        }
        Some(read(self.slot, self.at.wrapping_add(at)))
    }
}

impl tracker::Segment for Kept {
    #[inline(always)]
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.read::<1>(at).map(|byte| byte[0])
    }

    #[inline(always)]
    fn u16_at(&self, at: u32) -> Option<u16> {
        self.read::<2>(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u64_at(&self, at: u32) -> Option<u64> {
        self.read::<8>(at).map(u64::from_be_bytes)
    }

    /// No change: the server has these bytes already.
    #[inline(always)]
    fn defuse(&mut self, _at: u32) {}

    #[inline(always)]
    fn header(&mut self, _seq: u32, _header: Header, violations: Violations) {
        if self.counts != LOOK {
            report::violations(Side::Client, violations);
        }
    }
}
