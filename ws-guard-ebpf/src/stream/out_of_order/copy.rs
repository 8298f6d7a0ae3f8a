//! Copy of out-of-order segments: copying, comparing, walking, and its ranges.
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
    out_of_order::{BYTES, RANGES, mesh, piece},
    pages::{PAGE, PIECE, PLACES, Page},
    seq::before,
    tracker::{self, Step, Walk},
};

use crate::{
    cpu,
    packet::Packet,
    report::{self, Side},
    stream::{
        out_of_order::{entered, pages},
        trail,
    },
};

/// [`step`]: count nothing.
const LOOK: u32 = 0;
/// [`step`]: count headers' violations.
pub const COUNT: u32 = 1;
/// [`step`]'s result: call again.
pub const MORE: u32 = Step::More as u32;
/// [`step`]'s result: the walk is finished.
pub const DONE: u32 = Step::Done as u32;
/// Maximum of steps through all pieces of a copy, each of which may split two headers, as in
/// [`MAX_STEPS`](crate::stream::walk::MAX_STEPS).
pub const MAX_TURNS: u32 = BYTES / 2 + 32 * (PLACES + RANGES) as u32;

/// Bytes per comparison.
const WORD: u32 = 8;

/// Place of a byte in its page, masked where the verifier sees it.
#[inline(always)]
fn inside(seq: u32) -> usize {
    (black_box(seq) & (PAGE - 1)) as usize
}

/// `N` bytes of a page from `seq` on, all of which it has.
#[inline(always)]
fn read<const N: usize>(page: &Page, seq: u32) -> [u8; N] {
    // SAFETY: inside the page, or its spare bytes.
    unsafe { page.bytes.as_ptr().add(inside(seq)).cast::<[u8; N]>().read_unaligned() }
}

/// Number of bytes from `seq` to the end of its page.
#[inline(always)]
fn room(seq: u32) -> u32 {
    PAGE - (seq & (PAGE - 1))
}

/// Compare the packet's segment of `len` bytes at `seq` with the copy, as far as that has its bytes.
#[inline(always)]
pub fn is_same<P: Packet>(packet: &P, seq: u32, len: u32) -> bool {
    let turn: unsafe extern "C" fn(u32, *const P) -> c_long = same_turn::<P>;
    ws_guard_held_compare(seq, len, 0);
    run(packet, BYTES + RANGES as u32, turn)
}

/// Copy the packet's segment of `len` bytes at `seq`.
#[inline(always)]
pub fn copy<P: Packet>(packet: &P, seq: u32, len: u32) -> bool {
    let turn: unsafe extern "C" fn(u32, *const P) -> c_long = copy_turn::<P>;
    let Some((state, _)) = entered() else {
        return false;
    };
    (state.gap.from, state.gap.to, state.gap.bytes) = (0, seq, len);
    run(packet, BYTES / PIECE + 2 + PLACES as u32, turn)
}

/// Repeat `turn` until nothing is left; `false` if it ends earlier.
#[inline(always)]
fn run<P: Packet>(
    packet: &P,
    turns: u32,
    turn: unsafe extern "C" fn(u32, *const P) -> c_long,
) -> bool {
    // SAFETY: the callback gets `packet` back, which outlives the loop.
    unsafe {
        bpf_loop(turns, turn as *mut c_void, core::ptr::from_ref(packet).cast_mut().cast(), 0);
    }
    matches!(entered(), Some((state, _)) if state.gap.bytes == 0)
}

/// Set the next bytes to compare: those of the segment of `len` bytes at `seq` that the copy has,
/// from that range on. 0 if there are none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_compare(seq: u32, len: u32, range: u32) -> u32 {
    let Some((state, slot)) = entered() else {
        return 0;
    };
    let (mut found, mut from, mut bytes) = (RANGES as u32, seq, 0);
    let mut i = RANGES as u32;
    while i > 0 {
        i -= 1;
        let (first, shared) = slot.region.ranges[i as usize].shared(seq, len);
        if shared != 0 && i >= range {
            (found, from, bytes) = (i, first, shared);
        }
    }
    state.gap.range = found + 1;
    (state.gap.from, state.gap.to, state.gap.bytes) = (from.wrapping_sub(seq), from, bytes);
    bytes
}

/// Compare the next bytes; 1 ends the loop.
unsafe extern "C" fn same_turn<P: Packet>(_index: u32, packet: *const P) -> c_long {
    // SAFETY: `run` passed it.
    let packet = unsafe { &*packet };
    let Some((state, slot)) = entered() else {
        return 1;
    };
    let (from, to, left) = (state.gap.from, state.gap.to, state.gap.bytes);
    if left == 0 {
        return 1;
    }
    let Some(page) = pages::with(slot, to) else {
        return 1;
    };
    let whole = left >= WORD && room(to) >= WORD;
    let size = if whole { WORD } else { 1 };
    let same = if whole {
        packet.u64_at(from) == Some(u64::from_be_bytes(read(page, to)))
    } else {
        packet.u8_at(from) == Some(read::<1>(page, to)[0])
    };
    if !same {
        return 1;
    }
    state.gap.from = from.wrapping_add(size);
    state.gap.to = to.wrapping_add(size);
    state.gap.bytes = left - size;
    if left == size {
        let range = state.gap.range;
        ws_guard_held_compare(to.wrapping_sub(from), packet.bytes(), range);
    }
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
    let Some(page) = pages::with(slot, to) else {
        return 1;
    };
    let room = room(to);
    let left_here = if left < room { left } else { room };
    // As in `payload::cover`: the verifier has to see both bounds.
    let last = black_box(if left_here < PIECE { left_here } else { PIECE }.wrapping_sub(1));
    if last >= PIECE {
        return 1;
    }
    let size = last + 1;
    // SAFETY: `PIECE` bytes from there on belong to the page.
    if !unsafe { packet.load(from, page.bytes.as_mut_ptr().add(inside(to)), size) } {
        return 1;
    }
    state.gap.from = from.wrapping_add(size);
    state.gap.to = to.wrapping_add(size);
    state.gap.bytes = left.wrapping_sub(size);
    0
}

/// Check whether the copy has a place for the segment of `len` bytes at `seq`; one past a further
/// gap only if `more` is 1.
#[inline(always)]
pub fn has_place(seq: u32, len: u32, more: u32) -> bool {
    ws_guard_held_place(seq, len, more) != 0
}

/// [`has_place`], as a global function, like those below: the verifier checks each once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_place(seq: u32, len: u32, more: u32) -> u32 {
    matches!(entered(), Some((_, slot)) if slot.region.has_place(seq, len, more & 1)) as u32
}

/// Add the segment of `len` bytes at `seq`, which is in the copy.
#[inline(always)]
pub fn extend(seq: u32, len: u32) {
    ws_guard_held_extend(seq, len);
}

/// [`extend`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_extend(seq: u32, len: u32) -> u32 {
    if let Some((_, slot)) = entered() {
        slot.region.extend(seq, len);
    }
    0
}

/// Set [`crate::cpu::Gap::first`] to the first range past `cursor`, and [`crate::cpu::Gap::walk`] to the walk
/// through it. `false` unless [`crate::cpu::State::walk`] reaches it.
#[inline(always)]
pub fn reaches(cursor: u32) -> bool {
    ws_guard_held_reaches(cursor) != 0
}

/// [`reaches`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_reaches(cursor: u32) -> u32 {
    let Some((state, slot)) = entered() else {
        return 0;
    };
    let first = slot.region.next(cursor);
    if !first.is_reached(&state.walk.tracker) {
        return 0;
    }
    state.gap.mesh = mesh(state.walk.len(), state.traces.trail);
    let len = piece(&first, first.begin, state.gap.mesh);
    state.gap.first = first.begin;
    (state.gap.within, state.gap.at) = (first, first.begin.wrapping_add(len));
    state.gap.start = state.walk.tracker;
    state.gap.walk = Walk::new(state.gap.start, &state.gap.start, first.begin, len);
    1
}

/// Check whether the walk goes on in another piece, and set it to that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_on() -> u32 {
    let Some(state) = cpu::resume() else {
        return 0;
    };
    let (tracker, pings) = (state.gap.walk.tracker, state.gap.walk.pings);
    if !next_piece(tracker.resume()) {
        return 0;
    }
    state.gap.walk = Walk::new(tracker, &tracker, state.gap.from, state.gap.bytes);
    state.gap.walk.pings = pings;
    1
}

/// Set [`crate::cpu::Gap::from`] and [`crate::cpu::Gap::bytes`] to the next piece that the stream has
/// reached, at `cursor`. `false` when there is none.
#[inline(always)]
pub fn next_piece(cursor: u32) -> bool {
    ws_guard_held_piece(cursor) != 0
}

/// [`next_piece`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_piece(cursor: u32) -> u32 {
    let Some((state, slot)) = entered() else {
        return 0;
    };
    let (mut from, mut range) = (state.gap.at, state.gap.within);
    if from == range.end() {
        range = slot.region.next(from);
        if range.len == 0 || before(cursor, range.begin) {
            return 0;
        }
        from = range.begin;
    }
    let len = piece(&range, from, state.gap.mesh);
    (state.gap.within, state.gap.at) = (range, from.wrapping_add(len));
    (state.gap.from, state.gap.bytes) = (from, len);
    1
}

/// Remove the ranges that the stream has reached, at `cursor`. `false` when none is left.
#[inline(always)]
pub fn pass(cursor: u32) -> bool {
    ws_guard_held_pass(cursor) != 0
}

/// [`pass`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_pass(cursor: u32) -> u32 {
    let Some((_, slot)) = entered() else {
        return 0;
    };
    slot.region.pass(cursor);
    pages::release_unused();
    (slot.region.len != 0) as u32
}

/// Number of bytes of the walk's segment that are also in the copy.
#[inline(always)]
pub fn overlap() -> u32 {
    ws_guard_held_overlap()
}

/// [`overlap`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_overlap() -> u32 {
    match entered() {
        Some((state, slot)) => slot.region.overlap(&state.walk),
        None => 0,
    }
}

/// Run [`crate::cpu::Gap::walk`] to its end without counting.
/// `false` when that fails.
#[inline(always)]
pub fn look() -> bool {
    trail::looks(true);
    let turn: unsafe extern "C" fn(u32, *mut c_void) -> c_long = look_turn;
    // SAFETY: the callback uses nothing of this function.
    unsafe {
        bpf_loop(MAX_TURNS, turn as *mut c_void, core::ptr::null_mut(), 0);
    }
    trail::looks(false);
    matches!(cpu::resume(), Some(state) if state.gap.step == DONE)
}

/// One step; 1 ends the loop.
unsafe extern "C" fn look_turn(_index: u32, _none: *mut c_void) -> c_long {
    match step(LOOK) {
        MORE => 0,
        // The verifier knows nothing of the result, and has to see that this is 0 or 1.
        DONE => (black_box(ws_guard_held_on()) & 1 ^ 1) as c_long,
        _ => 1,
    }
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
    let walk = &state.gap.walk;
    let Some(page) = pages::with(slot, walk.base()) else {
        return Step::Unreadable as u32;
    };
    let mut bytes = Kept { page, seq: walk.base(), len: walk.len(), counts: what };
    state.gap.step = state.gap.walk.step(&mut bytes) as u32;
    if state.gap.walk.seen.count != 0 {
        trail::trace_seen(true);
    }
    state.gap.step
}

/// A piece of the copy.
struct Kept {
    page: &'static Page,
    /// Its first byte.
    seq: u32,
    len: u32,
    counts: u32,
}

impl Kept {
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if at >= self.len || self.len - at < N as u32 {
            return None;
        }
        Some(read(self.page, self.seq.wrapping_add(at)))
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
