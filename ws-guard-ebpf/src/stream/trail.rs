//! Traces of unacknowledged frame headers, [`ws_guard_common::ledger`] and
//! [`ws_guard_common::trail`].
//!
//! A flow has its traces itself, as long as there is room for them; a walk leaves them in this CPU's
//! state, and its commit moves them to the flow. A program that walks data of a flow with a trail has
//! [entered](enter) that: one CPU at a time, because traces count only once the walk is committed.
//! Where another CPU has entered it, the segment is dropped, and TCP retransmits it. A flow has a
//! trail from the first segment that may have more headers than there is room for until the server
//! has acknowledged everything.

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg},
};

use ws_guard_common::{
    flow::Flow,
    ledger::RING,
    out_of_order,
    tracker::FROM_CLIENT,
    trail::{self, Trace, Traces, Trail},
};

use crate::{
    cpu::{self, State},
    maps::{FLOWS, TRAILS as MAP, locked},
    packet, report,
};

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

/// Prepare the traces of a walk through a segment of `len` bytes. `false` where another CPU has the
/// flow's trail.
#[inline(always)]
pub fn enter(now: u64, len: u32) -> bool {
    ws_guard_trail_enter(now, len) != 0
}

/// The same for a segment of one header: the number of the trail plus 1, 0 where the flow has the traces
/// itself.
#[inline(always)]
pub fn enter_one(now: u64) -> Option<u32> {
    ws_guard_trail_enter(now, 0).checked_sub(1)
}

/// [`enter`], as a global function, like those below: the verifier checks each once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_enter(now: u64, len: u32) -> u32 {
    let (Some(state), Some(segment), Some(flow)) = (cpu::resume(), packet::segment(), flow())
    else {
        return 0;
    };
    (state.traces.trail, state.traces.left, state.traces.looks) = (0, 0, 0);
    state.rewind.replaces = 0;
    if let Some(counters) = report::counters() {
        // For a walk that is not committed.
        state.violations = counters.violations_in;
    }
    if flow.needs_trail(len) {
        ws_guard_ring_prune();
    }
    state.traces.many = flow.needs_trail(len) as u32;
    let own = flow.trail as u32;
    if own == 0 && state.traces.many == 0 {
        return 1;
    }
    let owner = out_of_order::owner(&segment.key, flow.generation);
    let number = if own != 0 { own } else { find(owner, now) };
    if number == 0 {
        return 1;
    }
    let index = number - 1;
    let Some(trail) = (if own != 0 { alone(index) } else { mine(index) }) else {
        return 0;
    };
    if own != 0 && trail.owner != owner {
        // It has none any more: nothing can be judged that has passed.
        locked(
            flow,
            #[inline(always)]
            |flow| {
                if flow.trail == own as u16 {
                    flow.trail = 0;
                    flow.lose_traces();
                }
            },
        );
        state.traces.many = flow.needs_trail(len) as u32;
        release(trail);
        return 1;
    }
    if trail.owner != owner || trail.acked != flow.acked {
        (trail.owner, trail.acked, trail.last_ns) = (owner, flow.acked, now);
        trail.key = segment.key;
    }
    if own == 0
        && !locked(
            flow,
            #[inline(always)]
            |flow| move_to(flow, trail, index),
        )
    {
        release(trail);
        return 0;
    }
    (state.traces.trail, state.traces.many) = (number, 0);
    if trail::is_worth_pruning(trail, flow) {
        prune(flow, trail);
    }
    (state.traces.next, state.traces.room) = (flow.next_trace, flow.trail_room());
    1 + number
}

/// Acquire one of the trails that the flow may take, and return its number plus 1; 0 where others have
/// all of them. One that is only idle is taken last.
#[inline(always)]
fn find(owner: u64, now: u64) -> u32 {
    let mut i = 0;
    while i < 2 * trail::CHOICE {
        // Before any time nothing is idle.
        let at = if i < trail::CHOICE { 0 } else { now };
        let found = ws_guard_trail_acquire(owner, at, i);
        if found != 0 {
            return found;
        }
        i += 1;
    }
    0
}

/// Acquire number `i` of the trails that the flow may take, unless another one needs it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_acquire(owner: u64, now: u64, i: u32) -> u32 {
    let index = trail::slot(owner, i);
    // First not entered: its own flow's segments would be dropped meanwhile.
    if is_anothers(index, owner, now) {
        return 0;
    }
    let Some(trail) = alone(index) else {
        return 0;
    };
    if is_anothers(index, owner, now) {
        release(trail);
        return 0;
    }
    index + 1
}

/// Return the trail of that number, which this CPU has acquired.
#[inline(always)]
fn mine(index: u32) -> Option<&'static mut Trail> {
    // SAFETY: as in `alone`.
    MAP.get_ptr_mut(index).map(|trail| unsafe { &mut *trail })
}

/// Move the traces of a flow to the trail of that number. `false` where it has one by now.
#[inline(always)]
fn move_to(flow: &mut Flow, trail: &mut Trail, index: u32) -> bool {
    let is_first = flow.trail == 0;
    if is_first {
        let first = flow.first_trace();
        let mut i = 0;
        // Those that count and all others: a branch for each would be followed to both sides.
        while i < RING as u32 {
            trail.put(first.wrapping_add(i), *flow.trace(first.wrapping_add(i)));
            i += 1;
        }
        flow.trail = (index + 1) as u16;
    }
    is_first
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
    trail.owner != 0 && trail.owner != owner && !idle && !is_over(trail, index)
}

/// Check whether the trail's flow is gone, has another one, or needs none any more: everything of it is
/// acknowledged and in order.
#[inline(always)]
fn is_over(trail: &Trail, index: u32) -> bool {
    let Some(flow) = FLOWS.get_ptr(&trail.key) else {
        return true;
    };
    // SAFETY: single words of a value that stays mapped while the program runs.
    let (generation, own, held) = unsafe { ((*flow).generation, (*flow).trail, (*flow).held) };
    let has_it = own as u32 == index + 1 || own == 0 && held != 0;
    !has_it || out_of_order::owner(&trail.key, generation) != trail.owner
}

/// Make room for traces in a trail or a flow: drop the acknowledged ones.
#[inline(always)]
fn prune(flow: &mut Flow, traces: &impl Traces) {
    let (first, count) = (flow.first_trace(), flow.traces as u32);
    let acked = traces.before(first, count, flow.acked);
    let latest = traces.trace(first.wrapping_add(acked).wrapping_sub(1)).seq;
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

/// Make room for traces in the flow.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_ring_prune() -> u32 {
    let Some(flow) = flow() else {
        return 0;
    };
    let (first, count) = (flow.first_trace(), flow.traces as u32);
    let acked = flow.before(first, count, flow.acked);
    let latest = flow.trace(first.wrapping_add(acked).wrapping_sub(1)).seq;
    locked(
        flow,
        #[inline(always)]
        |flow| {
            if (flow.first_trace() == first) & (flow.trail == 0) {
                flow.drop_traces(acked, latest);
            }
        },
    );
    0
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
    // The server's frames need none.
    let traced = seen.flags & FROM_CLIENT as u32 != 0 && state.traces.looks == 0;
    let trace = seen.trace();
    if (kept | state.traces.looks) == 0 {
        state.counted.beats.note(seen, state.walk.base());
    }
    let seen = if kept != 0 { &mut state.gap.walk.seen } else { &mut state.walk.seen };
    seen.count = 0;
    if traced {
        keep(trace);
    }
    0
}

/// Keep this trace for the commit: in this CPU's state, and in the trail as far as there is room.
/// In line: the callers have no stack frame left for one more.
#[inline(always)]
fn keep(trace: Trace) {
    if let Some((state, trail)) = entered()
        && state.traces.left < state.traces.room
    {
        trail.put(state.traces.next.wrapping_add(state.traces.left), trace);
    }
    if let Some(state) = cpu::resume() {
        let last = RING as u32 - 1;
        let at = if state.traces.left < last { state.traces.left } else { last };
        // Masked where the verifier sees it.
        state.traces.kept[black_box(at) as usize & (RING - 1)] = trace;
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

/// Place of a committed segment's latest trace in the [entered](enter) trail.
#[derive(Clone, Copy, Default)]
pub struct Latest {
    /// Its number.
    at: u32,
    /// Whether it takes another one's place there.
    full: bool,
}

/// Commit `count` traces in the trail of that number plus 1, under the flow's lock.
#[inline(always)]
pub fn take_in(flow: &mut Flow, trail: u32, count: u32) -> Latest {
    // An acknowledgement may have freed it meanwhile.
    flow.trail = trail as u16;
    let full = flow.take_traces(count);
    Latest { at: flow.next_trace.wrapping_sub(1), full }
}

/// Put the trace of a committed segment into the entered trail.
#[inline(always)]
pub fn put_latest(trace: Trace, Latest { at, full }: Latest) {
    ws_guard_trail_put(trace.seq, trace.mark, trace.word, at, full.into());
}

/// [`put_latest`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_put(seq: u32, mark: u32, word: u32, at: u32, full: u32) -> u32 {
    if let (Some((_, trail)), Some(flow)) = (entered(), flow()) {
        if full != 0 {
            trail::give_way(trail, at, flow.client.flags);
        }
        trail.put(at, Trace { seq, mark, word });
    }
    0
}

/// Room for the walk's traces.
#[inline(always)]
fn room(flow: &Flow, state: &State) -> u32 {
    match (state.traces.trail, state.rewind.replaces) {
        (0, 0) => flow.room(),
        // Bytes that replace all others have all of it.
        (0, _) => RING as u32,
        _ => state.traces.room,
    }
}

/// Check whether there is room for the walk's traces, or what they are [shortened](shorten) to.
#[inline(always)]
pub fn fits(flow: &Flow, state: &State) -> bool {
    state.traces.trail == 0 || flow.fits(state.traces.left, state.traces.room)
}

/// Shorten the walk's traces to the room for them.
#[inline(always)]
pub fn shorten(flow: &Flow, state: &State) {
    let room = room(flow, state);
    if state.traces.left > room || state.traces.many != 0 {
        ws_guard_trail_shorten(room, 0);
    }
}

/// Shorten those of the walk through the copy.
#[inline(always)]
pub fn shorten_kept(flow: &Flow, state: &State) {
    ws_guard_trail_shorten(room(flow, state), 1);
}

/// Shorten the traces of the walk, or of the walk through the copy.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_shorten(room: u32, kept: u32) -> u32 {
    if let (Some(state), Some(flow)) = (cpu::resume(), flow()) {
        let (counts, many) = ((state.traces.left, room), state.traces.many != 0);
        let (start, end) = match kept {
            0 => (&state.start, state.walk.end()),
            _ => (&state.gap.start, state.gap.walk.end()),
        };
        let count = flow.shorten(&mut state.traces.kept, counts, many, start, end);
        if count < state.traces.left {
            state.traces.left = count;
            replace();
        }
    }
    0
}

/// Replace the traces in the entered trail with those that are left of them: one or two.
#[inline(always)]
fn replace() {
    if let Some((state, trail)) = entered() {
        let mut i = 0;
        while i < 2 {
            if i < state.traces.room {
                trail.put(state.traces.next.wrapping_add(i), state.traces.kept[i as usize]);
            }
            i += 1;
        }
    }
}

/// Commit the traces of a walk that is committed, under the flow's lock; [`complete`] is to follow.
#[inline(always)]
pub fn take(flow: &mut Flow, state: &State) -> Latest {
    if state.traces.trail == 0 {
        flow.trace_all(&state.traces.kept, state.traces.left);
        return Latest::default();
    }
    if state.traces.left == 0 {
        // The flow may need none any more.
        return Latest::default();
    }
    take_in(flow, state.traces.trail, state.traces.left)
}

/// Put the one trace of a committed walk into a trail that was full before.
#[inline(always)]
pub fn complete(state: &State, latest: Latest) {
    if state.traces.trail != 0 && state.traces.room == 0 && state.traces.left == 1 {
        put_latest(state.traces.kept[0], latest);
    }
}

/// Restore the stream's state at `seq` into this CPU's, if it was traced there.
#[inline(always)]
pub fn finds(seq: u32) -> bool {
    ws_guard_trail_finds(seq) != 0
}

/// [`finds`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_finds(seq: u32) -> u32 {
    let (Some(state), Some(flow)) = (cpu::resume(), flow()) else {
        return 0;
    };
    let found = match entered() {
        Some((_, trail)) => trail.stood_at(flow, seq),
        None => flow.stood_at(seq),
    };
    match found {
        Some(tracker) => {
            state.rewind.from = tracker;
            1
        }
        None => 0,
    }
}

/// Check whether all old headers in the walk's segment are the traced ones.
#[inline(always)]
pub fn knows(state: &State) -> bool {
    match state.walk.joined {
        true => state.rewind.agrees != 0,
        false => ws_guard_trail_knows() != 0,
    }
}

/// [`knows`] for a walk that ends before the stream's current position, or in its split header.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_trail_knows() -> u32 {
    let (Some(state), Some(flow)) = (cpu::resume(), flow()) else {
        return 0;
    };
    let tracker = &state.walk.tracker;
    let known = match entered() {
        Some((_, trail)) => trail.knows(flow, tracker),
        None => flow.knows(tracker),
    };
    (known || *tracker == flow.client) as u32
}
