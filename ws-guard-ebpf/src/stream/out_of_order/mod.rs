//! Out-of-order segments, [`ws_guard_common::out_of_order`]: they pass, and are judged
//! when their gap is filled.
//!
//! A program that reads data of a flow with out-of-order segments has [entered](enter) their copy:
//! one CPU at a time, so that between judgement and commit only the server's acknowledgements can
//! change anything. Where another CPU has entered it, the segment is dropped, and TCP retransmits
//! it.

pub mod copy;
mod pages;

use core::{
    ffi::{c_long, c_void},
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg},
};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{
    flow::{self, Flow, SERVER_DONE},
    maps::Counter,
    out_of_order::{self, Held, Look, Range, SLOTS},
    tracker::Walk,
    verifier::forget,
};

use crate::{
    context::Context,
    cpu::{self, State},
    limits::charge,
    maps::{FLOWS, HELD, locked},
    packet::{Packet, Segment},
    report,
    stream::{commit::count, trail},
};

/// This CPU's state and the copy that it has entered, if any.
#[inline(always)]
pub fn entered() -> Option<(&'static mut State, &'static mut Held)> {
    let state = cpu::resume()?;
    if state.gap.copy == 0 {
        return None;
    }
    let slot = HELD.get_ptr_mut(state.gap.copy.wrapping_sub(1))?;
    // SAFETY: map values stay mapped while a program runs, and the CPU that has entered is alone
    // there.
    Some((state, unsafe { &mut *slot }))
}

/// Enter the copy, unless another CPU has it.
#[inline(always)]
fn alone(slot: *mut Held) -> bool {
    // SAFETY: an aligned word of a map value, which stays mapped while a program runs.
    let (_, alone) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*slot).busy,
            0,
            1,
        )
    };
    alone
}

/// Release the copy.
#[inline(always)]
fn release(slot: &mut Held) {
    // SAFETY: an aligned word of a map value.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut slot.busy, 0) };
}

/// Enter the flow's copy, or one for it from now on. `false` if another CPU or another flow has it.
#[cold]
#[inline(never)]
pub fn enter(context: &Context, flow: &mut Flow) -> bool {
    let owner = out_of_order::owner(context.key(), flow.generation);
    let index = out_of_order::slot(owner) & (SLOTS - 1);
    let (Some(state), Some(slot)) = (cpu::resume(), HELD.get_ptr_mut(index)) else {
        return false;
    };
    if !alone(slot) {
        return false;
    }
    // SAFETY: entered by this CPU alone.
    let slot = unsafe { &mut *slot };
    if flow.held == 0 && (slot.owner == 0 || slot.owner == owner || takes(slot, context.now)) {
        slot.owner = owner;
        slot.key = *context.key();
        slot.region.clear();
        pages::release(index, u32::MAX);
    }
    if slot.owner != owner {
        if flow.held != 0 && flow.held != STOLEN {
            lose(flow);
        }
        release(slot);
        return false;
    }
    state.gap.copy = index + 1;
    true
}

/// Put a flow out of sync whose copy is gone: an earlier schema's programs kept it after a takeover had read it.
/// No segment would pass otherwise.
#[cold]
#[inline(always)]
fn lose(flow: &mut Flow) {
    locked(
        flow,
        #[inline(always)]
        |flow| flow.lose_step(),
    );
    report::count(Counter::FlowsUnsynced);
}

/// Silence after which a connection that one side has ended gives its copy to another one, ns...
const ENDED_NS: u64 = 60_000_000_000;
/// ...and one whose client may have vanished.
const VANISHED_NS: u64 = 3_600_000_000_000;
/// [`Flow::held`]: another flow has the copy, and the gap must not be filled any more.
const STOLEN: u8 = 2;

/// Take an entered copy from a flow that [needs it no more](is_over). One that is only silent loses it.
#[inline(always)]
fn takes(slot: &Held, now: u64) -> bool {
    let takes = is_over(slot, now);
    if let (true, Some(flow)) = (takes, FLOWS.get_ptr_mut(&slot.key)) {
        // SAFETY: single words of a value that stays mapped while the program runs.
        let flow = unsafe { &mut *flow };
        let is_its = out_of_order::owner(&slot.key, flow.generation) == slot.owner;
        if is_its && flow.held != 0 {
            flow.held = STOLEN;
        }
    }
    takes
}

/// Check whether the copy's flow is gone, silent for long, or has no out-of-order segments any more.
#[inline(always)]
fn is_over(slot: &Held, now: u64) -> bool {
    let Some(flow) = FLOWS.get_ptr(&slot.key) else {
        return true;
    };
    // SAFETY: single words of a value that stays mapped while the program runs.
    let flow = unsafe { &*flow };
    let ended = flow.state == flow::state::CLOSED || flow.flags & SERVER_DONE != 0;
    let most = if ended { ENDED_NS } else { VANISHED_NS };
    if flow.held == 0 || out_of_order::owner(&slot.key, flow.generation) != slot.owner {
        return true;
    }
    flow.silent_ns(now) > most
}

/// Leave the copy; it is free if the flow has no out-of-order segments.
#[inline(never)]
pub fn leave(flow: &Flow) {
    if let Some((state, slot)) = entered() {
        if flow.held == 0 {
            slot.owner = 0;
            pages::release(state.gap.copy.wrapping_sub(1), u32::MAX);
        }
        state.gap.copy = 0;
        release(slot);
    }
}

/// Keep a copy of a segment past the cursor. `false` where the segment may not pass.
#[cold]
#[inline(never)]
pub fn keep<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> bool {
    let segment = context.segment;
    let may = flow.may_hold() && !flow.is_over_limit(context.now);
    if !may || context.limits_classes() || !context.enforces() {
        return false;
    }
    let (seq, len) = (segment.seq, segment.len);
    if !copy::has_place(seq, len, (flow.trail != 0) as u32) {
        return false;
    }
    let packet = payload(segment);
    if !copy::is_same(&packet, seq, len) {
        return false;
    }
    let copied = pages::acquire(seq, len, context.now) && copy::copy(&packet, seq, len);
    let holds = copied
        && locked(flow, |flow| {
            let holds = flow.hold(seq);
            flow.last_ns = if holds { context.now } else { flow.last_ns };
            holds
        });
    match holds {
        true => copy::extend(seq, len),
        false => pages::release_unused(),
    }
    holds
}

/// Decide, before a walk is committed, whether its segment may pass and fill the gap.
///
/// In parts, because the walk through the copy takes nearly the whole stack; and in line, because
/// on Linux 6.1 each call takes at least 32 bytes of it.
#[inline(always)]
pub fn judge<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> bool {
    let may = match compare(context, flow, payload) {
        REACHED => {
            let known = recall();
            (known == WHOLE || known == UNKNOWN && look()) && pay(context, flow)
        }
        verdict => verdict == ELSEWHERE,
    };
    if !may {
        uncount();
    }
    may
}

/// Take back the violations of a segment whose walk is not committed.
/// Nothing else has counted any on this CPU meanwhile.
#[cold]
#[inline(never)]
pub fn uncount() {
    if let (Some(state), Some(counters)) = (cpu::resume(), report::counters()) {
        counters.violations_in = state.violations;
    }
}

/// [`compare`]'s result: the walk ends before the copy, or there is none.
const ELSEWHERE: u32 = 0;
/// [`compare`]'s result: the walk reaches the copy, and its bytes there are the same.
const REACHED: u32 = 1;
/// [`compare`]'s result: the segment may not pass.
const REFUSED: u32 = 2;

/// Compare the walk's segment with the copy; if it reaches that, prepare the walk through it.
#[inline(never)]
fn compare<P: Packet>(context: &Context, flow: &Flow, payload: &impl Fn(&Segment) -> P) -> u32 {
    if flow.held == 0 || !copy::reaches(flow.client.resume()) {
        return ELSEWHERE;
    }
    let overlap = copy::overlap();
    // Some of its pings are over the limit, and rewritten already; the copy's would pass with them.
    // No walk is spent on that.
    if overlap > 0 && cpu::resume().is_none_or(|state| state.walk.pings > state.walk.budget) {
        return REFUSED;
    }
    let segment = context.segment;
    if !copy::is_same(&payload(segment), segment.seq, segment.len) {
        return REFUSED;
    }
    let Some(state) = cpu::resume() else {
        return REFUSED;
    };
    if !flow.may_fill(state.traces.left) {
        return REFUSED;
    }
    (state.gap.reached, state.gap.whole) = (1, (overlap > 0) as u32);
    REACHED
}

/// [`recall`]'s result: the walk fails, or is not to be repeated.
const FAILS: u32 = 0;
/// [`recall`]'s result: the walk reaches the end of the copy.
const WHOLE: u32 = 1;
/// [`recall`]'s result: the walk is still to be made.
const UNKNOWN: u32 = 2;

/// Recall the result of the walk through the copy, as far as it is known.
#[inline(never)]
fn recall() -> u32 {
    let Some((state, slot)) = entered() else {
        return FAILS;
    };
    match slot.region.recall(&state.gap.start) {
        Some(Look::FAILED) => FAILS,
        Some(pings) => {
            state.gap.walk.pings = pings;
            WHOLE
        }
        None => UNKNOWN,
    }
}

/// Walk through the copy. `false` where that does not reach its end.
#[inline(always)]
fn look() -> bool {
    let done = copy::look();
    remember(done);
    done
}

/// Remember the result of the walk through the copy.
#[inline(never)]
fn remember(done: bool) {
    if let Some((state, slot)) = entered() {
        let pings = if done { state.gap.walk.pings } else { Look::FAILED };
        slot.region.looked(&state.gap.start, pings);
    }
}

/// Charge the pings in the copy together with the filler's: all pass or none.
#[inline(never)]
fn pay(context: &Context, flow: &Flow) -> bool {
    let Some(state) = cpu::resume() else {
        return false;
    };
    let kept = state.gap.walk.pings;
    state.gap.whole |= (kept > 0) as u32;
    let pings = kept.wrapping_add(state.walk.pings);
    if state.gap.whole == 0 || pings == 0 {
        return true;
    }
    if state.walk.pings > state.walk.budget {
        return false;
    }
    if flow.is_over_limit(context.now) && charge::budget(context.now) < pings {
        // It is retransmitted until there is room, and must not be charged each time.
        return false;
    }
    let answer = forget(charge::charge(context.now, pings), context.now as u32);
    answer & charge::OBSERVED != 0 || answer & charge::KEPT >= pings
}

/// Commit the copy after the filler, up to the next gap, if the committed walk was that.
#[inline(never)]
pub fn follow(context: &Context, flow: &mut Flow) {
    if cpu::resume().is_none_or(|state| state.gap.copy == 0 || state.gap.reached == 0) {
        return;
    }
    fill();
    let mut pieces = Pieces { context, flow };
    if begin_piece(pieces.flow) {
        let turn: unsafe extern "C" fn(u32, *mut Pieces) -> c_long = piece_turn;
        // SAFETY: the callback gets `pieces` back, which outlives the loop.
        unsafe {
            bpf_loop(copy::MAX_TURNS, turn as *mut c_void, (&raw mut pieces).cast(), 0);
        }
    }
    let rest = copy::pass(pieces.flow.client.resume()) as u8;
    locked(pieces.flow, |flow| flow.held &= rest.wrapping_neg());
}

/// Update the state after the filler's commit.
#[inline(never)]
fn fill() {
    if let Some((state, _)) = entered() {
        // Before the first range.
        state.gap.at = state.gap.first.wrapping_sub(1);
        state.gap.within = Range { begin: state.gap.at, len: 0 };
    }
}

/// Context of the loop over the pieces.
struct Pieces<'a, 'b> {
    context: &'a Context<'b>,
    flow: &'a mut Flow,
}

/// One step through the pieces; 1 ends the loop.
unsafe extern "C" fn piece_turn(_index: u32, pieces: *mut Pieces) -> c_long {
    // SAFETY: passed by `follow`, with no other user during the loop.
    let pieces = unsafe { &mut *pieces };
    let goes_on = match copy::step(copy::COUNT) {
        copy::MORE => true,
        copy::DONE => end_piece(pieces.context, pieces.flow) && begin_piece(pieces.flow),
        _ => false,
    };
    !goes_on as c_long
}

/// Prepare the walk through the next piece. `false` when there is none.
#[inline(never)]
fn begin_piece(flow: &Flow) -> bool {
    if !copy::next_piece(flow.client.resume()) {
        return false;
    }
    let Some(state) = cpu::resume() else {
        return false;
    };
    let (begin, len) = (state.gap.from, state.gap.bytes);
    state.gap.start = flow.client;
    state.gap.walk = Walk::new(state.gap.start, &state.gap.start, begin, len).unbounded();
    (state.traces.next, state.traces.room, state.traces.left) =
        (flow.next_trace, flow.trail_room(), 0);
    true
}

/// Commit the walk through a piece. `false` when the flow is out of sync.
#[inline(never)]
fn end_piece(context: &Context, flow: &mut Flow) -> bool {
    let Some(state) = cpu::resume() else {
        return false;
    };
    trail::shorten_kept(flow, state);
    let mut latest = trail::Latest::default();
    let follows = locked(
        flow,
        #[inline(always)]
        |flow| {
            // Another CPU has begun a trail meanwhile.
            let elsewhere = (state.traces.trail == 0) & (flow.trail != 0);
            let follows = (flow.held != 0) & !elsewhere & (flow.client == state.gap.start);
            if follows {
                flow.commit(&state.gap.start, &state.gap.walk, state.gap.walk.pings);
                latest = trail::take(flow, state);
            }
            follows
        },
    );
    if !follows {
        return false;
    }
    trail::complete(state, latest);
    if state.gap.walk.tracker.resume() != state.gap.start.resume() {
        count(context, &state.gap.walk, &state.gap.start);
    }
    true
}
