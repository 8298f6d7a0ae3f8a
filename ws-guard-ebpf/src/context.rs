//! What the programs know when they look at a segment, and what they may decide.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ws_guard_common::{
    flow::Flow,
    maps::{Account, Client, Counter, FlowKey, LIMITS_CLASSES, Policy, SourceKey, TLS},
    tracker::{Step, Walk},
};

use crate::{
    limits::sources,
    packet::{Packet, Segment},
    report,
    stream::walk::{self, Walker},
};

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
}

/// What a program knows when it looks at a segment of a flow.
pub struct Context<'a> {
    pub segment: &'a Segment,
    pub policy: &'a Policy,
    /// Nanoseconds of the coarse clock.
    pub now: u64,
    /// Who its limits are about: a part of the flow, or of [`packet`]'s state where there is none. A
    /// pointer, because the flow is changed meanwhile.
    ///
    /// [`packet`]: crate::packet
    pub account: *const Account,
}

impl<'a> Context<'a> {
    /// Between whom the segment is.
    #[inline(always)]
    pub fn key(&self) -> &'a FlowKey {
        &self.segment.key
    }

    /// Who its limits are about.
    #[inline(always)]
    pub fn client(&self) -> &Client {
        // SAFETY: a map value, which stays mapped while a program runs, and is only read here.
        unsafe { &(*self.account).client }
    }

    /// The source of that client.
    #[inline(always)]
    pub fn source(&self) -> &SourceKey {
        // SAFETY: as above.
        unsafe { &(*self.account).source }
    }

    /// Under `observe`, and for who is allowed, nothing is ever dropped or changed; on a TLS port only
    /// under `drop`.
    #[inline(always)]
    pub fn enforces(&self) -> bool {
        let action = match self.policy.rules {
            0 => self.policy.action,
            _ => sources::action_for(self),
        };
        action >= self.policy.least_action()
    }

    /// The port speaks TLS: there are records to follow, not frames.
    #[inline(always)]
    pub fn is_tls(&self) -> bool {
        self.policy.flags & TLS != 0
    }

    /// Other frames than pings have limits as well: then each frame is looked at by its class.
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

/// What a walk came to.
pub enum Outcome {
    /// Nothing more to do.
    Pass,
    Drop,
    /// It came to its end, and the flow has yet to take over what is in this CPU's state.
    Walked,
    /// The same, from a checkpoint.
    Rewalked,
    /// The flow stands before these bytes: they are to be walked as new ones.
    Rewound,
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

/// A walk was taken to its end, if `done`.
#[inline(always)]
pub fn finished(context: &Context, done: bool, outcome: Outcome) -> Outcome {
    if done { outcome } else { context.drop(Counter::DroppedUnreadable).into() }
}

/// The segment's source is throttled, and something may be done about it.
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

/// A walk that came to `step` is taken to its end, with a budget for new pings if it asks for one.
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
/// A function: its caller's stack is that of the walk, too.
#[inline(never)]
fn grant(context: &Context, flow: &Flow) {
    let Some(state) = walk::resume() else {
        return;
    };
    let over = flow.is_over_limit(context.now) && context.enforces();
    state.walk.budget = if over { sources::budget(context.now) } else { Walk::UNLIMITED };
    state.asked_ns = flow.ping_ns;
    if flow.ping_ns == 0 && state.walk.budget > 0 {
        // A ping may wait for its pong from now on.
        // SAFETY: no arguments, no effects.
        state.asked_ns = unsafe { bpf_ktime_get_ns() };
    }
}
