//! Retransmissions of unacknowledged bytes: walk them again, and compare.

use ws_guard_common::{
    flow::{self, Flow},
    ledger::Interval,
    maps::{Counter, LIMITS_CLASSES},
    seq::later,
    tracker::{Step, Walk},
};

use crate::{
    context::{Context, Outcome, Verdict, run_out},
    cpu,
    packet::{Packet, Segment},
    report,
    stream::{midstream, out_of_order, trail, walk::Walker},
};

/// Handle a retransmission of unacknowledged bytes.
#[inline(always)]
pub fn again<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    if !trail::finds(later(context.segment.seq, flow.acked)) {
        return refuse(context, flow, Counter::DroppedUntraced).into();
    }
    report::count(Counter::Rewalked);
    if !prepare(context, flow, payload) {
        return Outcome::Pass;
    }
    // Evidence that the server holds nothing of it: other bytes count as new.
    if covers(context, flow) && differs(context, flow, payload) {
        return Outcome::New;
    }
    rewalk(context, flow, payload)
}

/// Check whether nothing has passed for long, and the segment replaces all that is not acknowledged. The
/// commit checks once more what that rests on.
#[inline(always)]
fn covers(context: &Context, flow: &Flow) -> bool {
    let Some(state) = cpu::resume() else {
        return false;
    };
    (state.rewind.acked, state.rewind.last_ns) = (flow.acked, flow.last_ns);
    let segment = context.segment;
    let silent = context.now.saturating_sub(state.rewind.last_ns) > flow::SETTLED_NS;
    silent && flow.is_covered_by(segment.seq, segment.seq.wrapping_add(segment.len))
}

/// Drop a retransmission that cannot be judged. If the client would stall, its flow goes out of sync.
#[cold]
#[inline(never)]
pub fn refuse(context: &Context, flow: &mut Flow, reason: Counter) -> Verdict {
    let segment = context.segment;
    let waits = flow.waits_for(segment.seq, segment.seq.wrapping_add(segment.len));
    let silent = context.now.saturating_sub(flow.last_ns) > flow::STALLED_NS;
    if waits && silent && context.enforces() {
        midstream::lose(flow);
    }
    context.drop(reason)
}

/// Prepare the walk of a retransmission from the tracker at its first unacknowledged byte.
#[cold]
#[inline(never)]
fn prepare<P: Packet>(context: &Context, flow: &Flow, payload: &impl Fn(&Segment) -> P) -> bool {
    let Some(state) = cpu::state() else {
        return false;
    };
    (state.known, state.start) = (flow.client, flow.client);
    let segment = context.segment;
    state.walk = Walk::new(state.rewind.from, &state.known, segment.seq, segment.len);
    state.walk.begins_at(&state.known);
    let is_split = state.known.carried != 0;
    let agrees = !is_split || state.walk.agrees(&payload(segment), &state.known);
    state.rewind.agrees = agrees as u32;
    true
}

/// Check in a dry run whether it has other headers than before. If so, they are to be walked as new
/// ones.
#[cold]
#[inline(never)]
fn differs<P: Packet>(context: &Context, flow: &Flow, payload: &impl Fn(&Segment) -> P) -> bool {
    let Some(state) = cpu::resume() else {
        return false;
    };
    state.walk.budget = Walk::UNLIMITED;
    state.traces.looks = 1;
    let mut walker = Walker { state, packet: payload(context.segment) };
    walker.packet.only_look(true);
    let done = matches!(walker.run_on(), Step::Done);
    let state = walker.state;
    state.traces.looks = 0;
    let differs = done && !trail::knows(state);
    state.rewind.replaces = differs as u32;
    state.rewind.settled = flow.is_settled(context.now) as u32;
    state.walk =
        Walk::new(state.rewind.from, &state.known, context.segment.seq, context.segment.len);
    state.walk.begins_at(&state.known);
    differs
}

/// Walk it again: pings that were defused are defused again. Refused if it has other headers.
#[cold]
#[inline(never)]
fn rewalk<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    let Some(state) = cpu::resume() else {
        return Outcome::Pass;
    };
    state.walk.defused = if context.enforces() { flow.defused_pings } else { Interval::default() };
    state.small_as(context.policy);
    let mut walker = Walker { state, packet: payload(context.segment) };
    walker.packet.classify(context.policy.flags & LIMITS_CLASSES);
    let step = walker.run_on();
    if !run_out(context, flow, &mut walker, step) {
        return context.drop(Counter::DroppedUnreadable).into();
    }
    if !trail::knows(walker.state) {
        out_of_order::uncount();
        return refuse(context, flow, Counter::DroppedChanged).into();
    }
    Outcome::Rewalked
}
