//! Retransmissions of unacknowledged bytes: look, judge, walk again.

use ws_guard_common::{
    flow::{self, Flow, Rewalk},
    maps::{Counter, LIMITS_CLASSES},
    tracker::{Step, Tracker, Walk},
};

use crate::{
    context::{Context, Outcome, finished, run_out},
    cpu,
    maps::locked,
    packet::{Packet, Segment},
    report,
    stream::{
        trail::{self, TRAIL},
        walk::Walker,
    },
};

/// Handle a retransmission of unacknowledged bytes: look, judge, walk again.
#[inline(always)]
pub fn again<P: Packet>(
    context: &Context,
    flow: &mut Flow,
    payload: &impl Fn(&Segment) -> P,
) -> Outcome {
    report::count(Counter::Rewalked);
    if !look(context, flow, payload) {
        return context.drop(Counter::DroppedChanged).into();
    }
    match judge(context, flow) {
        Outcome::Rewalked => rewalk(context, flow, payload),
        outcome => outcome,
    }
}

/// Walk from the checkpoint in a dry run, before it is known what may pass.
/// `false` when the bytes differ from the carried part of a split header, or cannot be read.
#[cold]
#[inline(never)]
fn look<P: Packet>(context: &Context, flow: &mut Flow, payload: &impl Fn(&Segment) -> P) -> bool {
    let Some(state) = cpu::state() else {
        return false;
    };
    if state.rewind.checkpoint != TRAIL.into() {
        let Some(from) = flow.checkpoint(state.rewind.checkpoint as u8) else {
            return false;
        };
        state.rewind.from = from;
    }
    state.start = flow.client;
    state.walk =
        Walk::new(state.rewind.from, &state.start, context.segment.seq, context.segment.len);
    state.walk.budget = Walk::UNLIMITED;
    state.walk.begins_at(&state.start);
    state.traces.looks = 1;
    let mut walker = Walker { state, packet: payload(context.segment) };
    walker.packet.only_look(true);
    matches!(walker.run_on(), Step::Done)
        && walker.state.walk.agrees(&walker.packet, &walker.state.start)
}

/// Decide what of the retransmission may pass, and set the state for the walk that follows.
#[cold]
#[inline(never)]
fn judge(context: &Context, flow: &mut Flow) -> Outcome {
    let Some(state) = cpu::resume() else {
        return Outcome::Pass;
    };
    state.traces.looks = 0;
    let (checkpoint, from) = (state.rewind.checkpoint as u8, state.rewind.from);
    let settled = context.now.saturating_sub(flow.last_ns) > flow::SETTLED_NS;
    let known = trail::knows();
    state.rewind.before = flow.rewindable();
    let judged = match checkpoint {
        TRAIL if known => Rewalk::Known,
        TRAIL => Rewalk::Refuse,
        checkpoint => {
            let facts = (known as u8 * flow::KNOWN) | (settled as u8 * flow::SETTLED);
            flow.rewalk_budget(checkpoint, &state.walk, facts)
        }
    };
    let old_budget = match judged {
        Rewalk::Known => {
            state.rewind.checkpoint = TRAIL.into();
            if context.enforces() { flow.old_pings() } else { Walk::UNLIMITED }
        }
        Rewalk::Refuse => return context.drop(Counter::DroppedChanged).into(),
        Rewalk::New if rewind(context, flow, &state.start, checkpoint, &from) => {
            state.rewind.rewound = 1;
            return Outcome::Rewound;
        }
        Rewalk::New => return context.drop(Counter::DroppedUnreadable).into(),
        Rewalk::Same(passed) if context.enforces() => passed,
        Rewalk::Same(_) => Walk::UNLIMITED,
    };
    state.walk = Walk::new(from, &state.start, context.segment.seq, context.segment.len);
    state.walk.old_budget = old_budget;
    state.walk.begins_at(&state.start);
    Outcome::Rewalked
}

/// Walk it again, now that it is known what may pass.
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
    state.small_as(context.policy);
    let mut walker = Walker { state, packet: payload(context.segment) };
    walker.packet.classify(context.policy.flags & LIMITS_CLASSES);
    let step = walker.run_on();
    finished(context, run_out(context, flow, &mut walker, step), Outcome::Rewalked)
}

/// Set the flow back to a checkpoint: other bytes replace those after it.
#[inline(always)]
fn rewind(
    context: &Context,
    flow: &mut Flow,
    known: &Tracker,
    checkpoint: u8,
    from: &Tracker,
) -> bool {
    let settled = flow.is_settled(context.now);
    locked(flow, |flow| {
        let unchanged = flow.client == *known && flow.starts_at(checkpoint, from);
        if unchanged {
            flow.rewind(checkpoint, settled);
        }
        unchanged
    })
}

/// Undo the rewind of a segment that was not committed in the end.
#[cold]
#[inline(never)]
pub fn undo(flow: &mut Flow) {
    let Some(state) = cpu::resume() else {
        return;
    };
    if state.rewind.rewound != 0 {
        state.rewind.rewound = 0;
        locked(flow, |flow| flow.undo_rewind(&state.rewind.before));
    }
}
