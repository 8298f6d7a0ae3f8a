//! Trail of unacknowledged frame headers, [`ws_guard_common::trail`].
//!
//! A program that walks data of a flow with a trail has [entered](enter) it: one CPU at a time,
//! because traces count only once the walk is committed. Where another CPU has entered it, the
//! segment is dropped, and TCP retransmits it. A flow has a trail from the first segment with more
//! than one header, or with more segments in flight than it has checkpoints for, until the server
//! has acknowledged everything.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};

use ws_guard_common::{
    flow::Flow,
    out_of_order,
    tracker::Tracker,
    trail::{self, Trace, Trail},
};

use crate::{
    cpu::{self, State},
    maps::{FLOWS, TRAILS as MAP, locked},
    packet, report,
};

/// Checkpoint number for a walk that begins on the trail.
pub const TRAIL: u8 = u8::MAX;

/// This CPU's state and the trail that it has entered, if any.
#[inline(always)]
fn entered() -> Option<(&'static mut State, &'static mut Trail)> {
    let state = cpu::resume()?;
    if state.traces.trail == 0 {
        return None;
    }
    let trail = MAP.get_ptr_mut(state.traces.trail.wrapping_sub(1))?;
    // SAFETY: map values stay mapped while a program runs, and the CPU that has entered is alone
    // there.
    Some((state, unsafe { &mut *trail }))
}

/// Acquire the trail of that number, unless another CPU has it, until [`release`].
#[inline(always)]
fn alone(index: u32) -> Option<&'static mut Trail> {
    let trail = MAP.get_ptr_mut(index)?;
    // SAFETY: an aligned word of a map value, which stays mapped while a program runs.
    let (_, alone) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*trail).busy,
            0,
            1,
        )
    };
    // SAFETY: acquired by this CPU alone.
    if alone { Some(unsafe { &mut *trail }) } else { None }
}

/// Release the trail.
#[inline(always)]
fn release(trail: &mut Trail) {
    // SAFETY: an aligned word of a map value.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut trail.busy, 0) };
}

/// Flow of the current segment.
#[inline(always)]
fn flow() -> Option<&'static mut Flow> {
    let flow = FLOWS.get_ptr_mut(&packet::segment()?.key)?;
    // SAFETY: map values stay mapped while a program runs; what is read without the lock is
    // compared under it before anything is changed.
    Some(unsafe { &mut *flow })
}

/// Enter the current flow's trail, or one for it from now on. `false` where another CPU has it.
///
/// Without a free trail, the flow has only its checkpoints.
#[inline(always)]
pub fn enter(now: u64) -> bool {
    ws_guard_trail_enter(now) != 0
}

/// [`enter`], as a global function, like those below: the verifier checks each once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_enter(now: u64) -> u32 {
    let (Some(state), Some(segment), Some(flow)) = (cpu::resume(), packet::segment(), flow())
    else {
        return 0;
    };
    (state.traces.trail, state.traces.left, state.traces.looks) = (0, 0, 0);
    if let Some(counters) = report::counters() {
        // For a walk that is not committed.
        state.violations = counters.violations_in;
    }
    let owner = out_of_order::owner(&segment.key, flow.generation);
    let own = flow.trail as u32;
    let index = if own != 0 { own - 1 } else { trail::slot(owner) };
    if own == 0 && is_anothers(index, owner, now) {
        // Not entered: its own flow's segments would be dropped meanwhile.
        return 1;
    }
    let Some(trail) = alone(index) else {
        return (own == 0) as u32;
    };
    let others = is_anothers(index, owner, now);
    if others || own == 0 || trail.owner != owner {
        // A new trail, or none any more: nothing is traced yet.
        let number = if others { 0 } else { (index + 1) as u16 };
        locked(
            flow,
            #[inline(always)]
            |flow| {
                flow.trail = number;
                flow.trace_anew();
            },
        );
    }
    if others {
        release(trail);
        return 1;
    }
    if trail.owner != owner || trail.acked != flow.acked {
        (trail.owner, trail.acked, trail.last_ns) = (owner, flow.acked, now);
        trail.key = segment.key;
    }
    state.traces.trail = index + 1;
    if flow.traces as u32 > trail::TRACES / 2 {
        prune(flow, trail);
    }
    (state.traces.next, state.traces.room) = (flow.next_trace, flow.trail_room());
    1
}

/// Check whether the trail of that number belongs to another flow that needs it.
#[inline(always)]
fn is_anothers(index: u32, owner: u64, now: u64) -> bool {
    let Some(trail) = MAP.get_ptr(index) else {
        return true;
    };
    // SAFETY: words of a value that stays mapped while the program runs; a caller that relies on
    // them enters the trail and checks again.
    let trail = unsafe { &*trail };
    let idle = now.saturating_sub(trail.last_ns) > trail::IDLE_NS;
    trail.owner != 0 && trail.owner != owner && !idle && !is_over(trail)
}

/// Check whether the trail's flow is gone, or everything of it is acknowledged and in order: more than one
/// range of it is kept only with a trail.
#[inline(always)]
fn is_over(trail: &Trail) -> bool {
    let Some(flow) = FLOWS.get_ptr(&trail.key) else {
        return true;
    };
    // SAFETY: single words of a value that stays mapped while the program runs.
    let (generation, kept, held) = unsafe { ((*flow).generation, (*flow).kept, (*flow).held) };
    kept == 0 && held == 0 || out_of_order::owner(&trail.key, generation) != trail.owner
}

/// Make room for traces: drop the acknowledged ones.
#[cold]
#[inline(always)]
fn prune(flow: &mut Flow, trail: &Trail) {
    let (first, count) = (flow.first_trace(), flow.traces as u32);
    let acked = trail.before(first, count, flow.acked);
    let latest = trail.trace(first.wrapping_add(acked).wrapping_sub(1)).seq;
    locked(
        flow,
        #[inline(always)]
        |flow| {
            if flow.first_trace() == first {
                flow.drop_traces(acked, latest);
            }
        },
    );
}

/// Leave the trail.
#[inline(always)]
pub fn leave() {
    ws_guard_trail_leave();
}

/// [`leave`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_leave() -> u32 {
    if let Some((state, trail)) = entered() {
        state.traces.trail = 0;
        release(trail);
    }
    0
}

/// Trace the new headers of the latest step, of the walk or of the walk through the copy. A trace
/// counts once the walk is committed; a dry run ([`looks`]) leaves none.
#[inline(always)]
pub fn trace_seen(kept: bool) {
    ws_guard_trace_seen(kept.into());
}

/// [`trace_seen`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trace_seen(kept: u32) -> u32 {
    let Some(state) = cpu::resume() else {
        return 0;
    };
    let seen = if kept != 0 { &state.gap.walk.seen } else { &state.walk.seen };
    let trace = seen.trace();
    if (kept | state.traces.looks) == 0 {
        state.counted.beats.note(seen, state.walk.base());
    }
    let seen = if kept != 0 { &mut state.gap.walk.seen } else { &mut state.walk.seen };
    seen.count = 0;
    if state.traces.looks == 0 {
        keep(trace);
    }
    0
}

/// Keep this trace, if a trail is entered.
/// In line: the callers have no stack frame left for one more.
#[inline(always)]
fn keep(trace: Trace) {
    if let Some((state, trail)) = entered() {
        if state.traces.left < state.traces.room {
            trail.put(state.traces.next.wrapping_add(state.traces.left), trace);
        }
        state.traces.left = state.traces.left.wrapping_add(1);
    }
}

/// Set whether a dry run follows.
#[inline(always)]
pub fn looks(looks: bool) {
    if let Some(state) = cpu::resume() {
        state.traces.looks = looks.into();
    }
}

/// Trace a committed segment with one header in the [entered](enter) trail, and leave that. If
/// another CPU was faster, all traces become invalid.
#[inline(always)]
pub fn trace_one(start: &Tracker, word: u16, next: u32) {
    let trace = Trace::new(start, word);
    ws_guard_trace(trace.seq, trace.mark, trace.word);
    ws_guard_trace_one(start.next, next);
}

/// Keep this trace.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trace(seq: u32, mark: u32, word: u32) -> u32 {
    keep(Trace { seq, mark, word });
    0
}

/// Validate the one trace, of a header at `seq`, if the flow's next header is at `next`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trace_one(seq: u32, next: u32) -> u32 {
    let (Some(flow), traced) = (flow(), entered().is_some()) else {
        return 0;
    };
    locked(
        flow,
        #[inline(always)]
        |flow| {
            if traced && flow.trail != 0 && flow.client.next == next {
                flow.take_one(seq);
            } else {
                flow.trace_anew();
            }
        },
    );
    ws_guard_trail_leave()
}

/// Restore the stream's state at `seq` into [`State::from`], if it was traced there.
#[inline(always)]
pub fn finds(seq: u32) -> bool {
    ws_guard_trail_finds(seq) != 0
}

/// [`finds`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_finds(seq: u32) -> u32 {
    let (Some((state, trail)), Some(flow)) = (entered(), flow()) else {
        return 0;
    };
    match trail.stood_at(flow, seq) {
        Some(tracker) => {
            state.rewind.from = tracker;
            1
        }
        None => 0,
    }
}

/// Check whether all old headers in the walk's segment are the traced ones.
#[inline(always)]
pub fn knows() -> bool {
    ws_guard_trail_knows() != 0
}

/// [`knows`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_knows() -> u32 {
    let (Some((state, trail)), Some(flow)) = (entered(), flow()) else {
        return 0;
    };
    let reached = flow.is_reached(&state.walk) || trail.knows(flow, &state.walk.tracker);
    (reached && flow.is_proven()) as u32
}
