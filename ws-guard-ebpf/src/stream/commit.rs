//! End of a walk: commit it, charge the source, fix the packet.

use ws_guard_common::{
    flood::Class,
    flow::{self, Flow},
    maps::Counter,
    tracker::{Tracker, Walk},
    verifier::forget,
};

use crate::{
    context::{Context, Verdict},
    cpu::{self, State},
    limits::charge,
    maps::locked,
    packet::{Packet, Segment},
    report::{self, Side},
    servers,
    stream::{trail, walk::Walker},
};

/// Commit a walk of new bytes.
#[inline(never)]
pub fn commit(context: &Context, flow: &mut Flow) -> bool {
    take_over(context, flow, |flow, state, passed| {
        let replaces = state.rewind.replaces != 0;
        if replaces {
            flow.set_back(&state.start);
        }
        flow.commit(&state.start, &state.walk, passed);
        if replaces {
            flow.replaced_to(state.walk.end(), state.rewind.settled != 0);
        }
    })
}

/// Commit a walk through bytes that came before.
#[cold]
#[inline(never)]
pub fn recommit(context: &Context, flow: &mut Flow) -> bool {
    take_over(context, flow, |flow, state, passed| {
        flow.repeated(&state.known, &state.walk, passed);
    })
}

/// Commit the walk with `take`, if the flow is where it was when the walk began; and find the number
/// of new pings that the budget and the connection's own limit let pass.
#[inline(always)]
fn take_over(
    context: &Context,
    flow: &mut Flow,
    take: impl FnOnce(&mut Flow, &State, u32),
) -> bool {
    let Some(state) = cpu::resume() else {
        return false;
    };
    let pings = state.walk.pings;
    let passed = if pings < state.walk.budget { pings } else { state.walk.budget };
    state.counted.passed = passed;
    // Headers beyond the room are retransmitted after the server has acknowledged others.
    if !trail::fits(flow, state) && context.enforces() {
        return false;
    }
    trail::shorten(flow, state);
    let (mut committed, mut lost, mut latest) = (false, false, trail::Latest::default());
    locked(flow, |flow| {
        // Segments that another CPU keeps out of order meanwhile are not judged yet.
        let judged = (flow.held == 0) | (state.gap.copy != 0);
        // Another CPU has begun a trail meanwhile.
        let elsewhere = (state.traces.trail == 0) & (flow.trail != 0);
        let stands = judged
            & !elsewhere
            & (flow.client == state.known)
            & (flow.state == flow::state::OPEN)
            & still_replaces(flow, state);
        if stands {
            take(flow, state, passed);
            latest = trail::take(flow, state);
            flow.last_ns = context.now;
            lost = flow.state != flow::state::OPEN;
            committed = true;
        }
    });
    if committed {
        trail::complete(state, latest);
    }
    if lost {
        report::count(Counter::FlowsUnsynced);
    }
    committed
}

/// Check that nothing has passed and been acknowledged since the walk's bytes were found to replace all others.
#[inline(always)]
fn still_replaces(flow: &Flow, state: &State) -> bool {
    let covers = flow.is_covered_by(state.walk.base(), state.walk.end());
    let still = (flow.acked == state.rewind.acked) & (flow.last_ns == state.rewind.last_ns);
    (state.rewind.replaces == 0) | (covers & still)
}

/// Charge the source for a committed segment's pings, and fix the packet.
#[inline(never)]
pub fn settle<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Verdict {
    let Some(state) = cpu::resume() else {
        return Verdict::Pass;
    };
    let mut walker = Walker { state, packet: payload(context.segment) };
    let charges = walker.state.walk.pings > 0 && walker.state.gap.whole == 0;
    if charges && !charge(context, flow, &mut walker) {
        return Verdict::Drop;
    }
    finish(context, &mut walker);
    Verdict::Pass
}

/// Charge the source for the segment's pings. `false` to drop the segment.
#[inline(always)]
fn charge<P: Packet>(context: &Context, flow: &mut Flow, walker: &mut Walker<P>) -> bool {
    let (pings, passed) = (walker.state.walk.pings, walker.state.counted.passed);
    let segment = context.segment;
    let answer = charge::charge(context.now, pings);
    if answer & charge::OBSERVED != 0 {
        return true;
    }
    let charged = answer & charge::KEPT;
    let kept = if charged < passed { charged } else { passed };
    if kept < passed {
        // The walk passed more than the charge allows: repeat it with the known number.
        let state = &mut *walker.state;
        let (start, known) = (state.start, state.walk.tracker);
        state.walk = Walk::new(start, &known, segment.seq, segment.len);
        state.walk.old_budget = kept;
        state.walk.budget = 0;
        let drops = forget(answer & charge::DROP, segment.seq) != 0;
        walker.packet.only_look(drops);
        walker.run_on();
        let state = &mut *walker.state;
        let first = state.start.next.wrapping_add((state.start.carried != 0) as u32);
        let from = if kept == 0 { first } else { state.walk.passed_to() };
        take_back(flow, passed - kept, from, state.walk.end());
        state.counted.passed = kept;
    }
    if kept == pings {
        return true;
    }
    if answer & charge::DROP != 0 {
        return false;
    }
    report::add(Counter::Defused, (pings - kept) as u64);
    true
}

/// Correct the flow: fewer pings pass than were committed.
#[inline(always)]
pub fn take_back(flow: &mut Flow, pings: u32, from: u32, to: u32) {
    locked(flow, |flow| {
        flow.take_back(pings, from, to);
    });
}

/// Fix the checksum.
#[inline(always)]
fn finish<P: Packet>(context: &Context, walker: &mut Walker<P>) {
    let (even, odd) = (walker.state.rewrite.even, walker.state.rewrite.odd);
    if even + odd > 0 {
        walker.packet.fix_checksum(context.segment, even, odd);
        report::add(Counter::Rewritten, (even + odd) as u64);
    }
}

/// Count the result of a walk.
#[inline(never)]
pub fn count_walk(context: &Context) {
    let (Some(counters), Some(state)) = (report::counters(), cpu::resume()) else {
        return;
    };
    let small = state.counted.classes.0[Class::SmallRecord as usize];
    counters.events[Counter::SmallRecords as usize] += small as u64;
    let (walk, start) = (&state.walk, &state.start);
    count(context, walk, start);
    // Not of out-of-order segments, whose walk has no stack left for it.
    servers::walked(Side::Client, walk.coalesces(), walk.splits_header(start), walk.violations);
}

/// Count the result of a walk from `start` on, without its classes.
#[inline(always)]
pub fn count(context: &Context, walk: &Walk, start: &Tracker) {
    let Some(counters) = report::counters() else {
        return;
    };
    let events = &mut counters.events;
    let (began, is_record) = (walk.frames as u64, walk.tracker.in_records() as u64);
    events[Counter::Frames as usize] += began * (is_record ^ 1);
    events[Counter::Records as usize] += began * is_record;
    events[Counter::Pings as usize] += walk.pings as u64;
    events[Counter::Pongs as usize] += walk.pongs as u64;
    events[Counter::Coalesced as usize] += walk.coalesces() as u64;
    events[Counter::SplitHeaders as usize] += walk.splits_header(start) as u64;
    events[Counter::SplitFrames as usize] += walk.splits_frame() as u64;
    report::violation_event(Side::Client, context.key(), walk, context.now);
}
