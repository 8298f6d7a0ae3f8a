//! Packets that may carry TCP and cannot be followed.
//!
//! Linux reassembles fragments and follows any chain of extension headers before TCP sees the
//! segment, so a flood would pass uncounted in them. They are dropped if they are for a protected
//! port, or if the port cannot be told; the operator may let them pass.

use ws_guard_common::maps::{Counter, Policy, UNREADABLE_PASSES};

use crate::{
    context::Verdict,
    maps,
    packet::{self, Parsed},
    report,
};

/// Verdict about a packet without a readable TCP segment.
#[cold]
#[inline(never)]
pub fn verdict(parsed: Parsed) -> Verdict {
    report::count(Counter::Seen);
    if matches!(parsed, Parsed::Other) {
        return Verdict::Pass;
    }
    report::count(Counter::Unparsed);
    let (reason, policy) = match parsed {
        Parsed::Fragment => (Counter::DroppedFragment, policy_of_port()),
        Parsed::Rerouted => (Counter::DroppedHeaders, policy_of_port()),
        Parsed::Hidden => (Counter::DroppedHeaders, maps::policy_of_scope(0)),
        _ => return Verdict::Pass,
    };
    let Some(policy) = policy else {
        return Verdict::Pass;
    };
    if policy.action < policy.least_action() || policy.flags & UNREADABLE_PASSES != 0 {
        return Verdict::Pass;
    }
    report::count(reason);
    Verdict::Drop
}

#[inline(always)]
fn policy_of_port() -> Option<&'static Policy> {
    packet::segment().and_then(|segment| maps::policy_of(segment.key.server_port))
}
