//! Context of the current segment, and the verdicts about it.

use ws_guard_common::{
    flow::Flow,
    maps::{Account, Client, Counter, FlowKey, LIMITS_CLASSES, Policy, SourceKey, TLS},
    tracker::{Step, Walk},
};

use crate::{
    cpu,
    limits::{charge, rules, sources},
    packet::{Packet, Segment},
    report,
    stream::walk::Walker,
};

/// Verdict about a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
}

/// Context of a segment: what all steps need to know about it.
pub struct Context<'a> {
    pub segment: &'a Segment,
    pub policy: &'a Policy,
    /// Nanoseconds of CLOCK_MONOTONIC, read once a tick.
    pub now: u64,
    /// Client and source for the limits: in the flow, or in [`packet`]'s state where there is none.
    /// A pointer, because the flow is changed meanwhile.
    ///
    /// [`packet`]: crate::packet
    pub account: *const Account,
}

impl<'a> Context<'a> {
    /// The segment's end points.
    #[inline(always)]
    pub fn key(&self) -> &'a FlowKey {
        &self.segment.key
    }

    /// The client that the limits apply to.
    #[inline(always)]
    pub fn client(&self) -> &Client {
        // SAFETY: a map value, which stays mapped while a program runs, and is only read here.
        unsafe { &(*self.account).client }
    }

    /// The client's source.
    #[inline(always)]
    pub fn source(&self) -> &SourceKey {
        // SAFETY: as above.
        unsafe { &(*self.account).source }
    }

    /// Check whether the guard may drop or change anything: not under `observe` or for allowed
    /// sources, and on a TLS port only under `drop`.
    #[inline(always)]
    pub fn enforces(&self) -> bool {
        let action = match self.policy.rules {
            0 => self.policy.action,
            _ => rules::action_for(),
        };
        action >= self.policy.least_action()
    }

    /// Check whether the port speaks TLS: records are followed then, not frames.
    #[inline(always)]
    pub fn is_tls(&self) -> bool {
        self.policy.flags & TLS != 0
    }

    /// Check whether other frames than pings have limits: each frame is then classified.
    #[inline(always)]
    pub fn limits_classes(&self) -> bool {
        self.policy.flags & LIMITS_CLASSES != 0
    }

    /// Drop for a reason, unless the policy only observes.
    #[inline(always)]
    pub fn drop(&self, reason: Counter) -> Verdict {
        if !self.enforces() {
            return Verdict::Pass;
        }
        report::count(reason);
        Verdict::Drop
    }
}

/// Outcome of a walk.
pub enum Outcome {
    /// Nothing more to do.
    Pass,
    Drop,
    /// Finished; the flow has yet to take over the result in this CPU's state.
    Walked,
    /// The same, of bytes that came before.
    Rewalked,
    /// Walk these bytes as new ones.
    New,
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Pass => Outcome::Pass,
            Verdict::Drop => Outcome::Drop,
        }
    }
}

/// `outcome` if the walk is `done`, otherwise a drop.
#[inline(always)]
pub fn finished(context: &Context, done: bool, outcome: Outcome) -> Outcome {
    if done { outcome } else { context.drop(Counter::DroppedUnreadable).into() }
}

/// Check whether the segment's source is throttled and the guard enforces.
#[inline(never)]
pub fn throttled(context: &Context) -> bool {
    if !context.enforces() || !sources::any_throttled(context.now) {
        return false;
    }
    match sources::find(context.source()) {
        Some(source) => source.is_throttled(context.client(), context.policy, context.now),
        None => false,
    }
}

/// Run a walk after `step` to its end, with a budget for new pings if it asks for one.
#[inline(always)]
pub fn run_out<P: Packet>(
    context: &Context,
    flow: &Flow,
    walker: &mut Walker<P>,
    step: Step,
) -> bool {
    if !matches!(step, Step::Ask) {
        return matches!(step, Step::Done);
    }
    grant(context, flow);
    matches!(walker.run_on(), Step::Done)
}

/// Set the budget for new pings of the walk in this CPU's state.
///
/// Not in line: the caller's stack is also the walk's.
#[inline(never)]
fn grant(context: &Context, flow: &Flow) {
    let Some(state) = cpu::resume() else {
        return;
    };
    let over = flow.is_over_limit(context.now) && context.enforces();
    state.walk.budget = if over { charge::budget(context.now) } else { Walk::UNLIMITED };
}
