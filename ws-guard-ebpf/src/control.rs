//! Changes to sources on the daemon's behalf. They need the source's lock, which user space cannot
//! take.

use aya_ebpf::{
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    programs::TcContext,
};
use ws_guard_common::{
    maps::{Operation, Request, action, answer},
    source::{BANNED, millis},
    window::Rate,
};

use crate::{
    limits::{charge, sources},
    maps, tables,
};

/// Offset of a request: it follows the Ethernet header that the kernel requires of a test packet.
const REQUEST: usize = 14;

/// Carry out the request in the packet; the answer is one of [`answer`].
#[inline(always)]
pub fn run(ctx: &TcContext) -> u32 {
    let Ok(request) = ctx.load::<Request>(REQUEST) else {
        return answer::BAD_REQUEST;
    };
    let Some(policy) = maps::policy_of_scope(request.source.scope()) else {
        return answer::BAD_REQUEST;
    };
    // SAFETY: no arguments, no effects.
    let now = unsafe { bpf_ktime_get_ns() };
    if request.operation == Operation::Release as u32 {
        let Some(source) = sources::find(&request.source) else {
            return answer::NOT_FOUND;
        };
        source.locked(|source| source.release());
        tables::release_flows(&request.source, now);
        return answer::DONE;
    }
    if request.operation == Operation::Regroup as u32 {
        return regroup(&request);
    }
    let report = request.operation == Operation::Report as u32;
    let ban = request.operation == Operation::Ban as u32;
    if !report && !ban && request.operation != Operation::Throttle as u32 {
        return answer::BAD_REQUEST;
    }
    let Some(source) = sources::entry(&request.source, now, report) else {
        return answer::TABLE_FULL;
    };
    if report {
        let over = charge::reported(source, &request.source, policy, now, request.pings);
        let (paces, drops) = (source.paces(), source.action() >= action::DROP);
        if over && (paces || drops) {
            tables::treat_only_flow(&request.source, policy, drops, now);
        }
        return answer::DONE;
    }
    let flag = if ban { BANNED } else { 0 };
    source.locked(|source| source.throttle(now, request.until, flag));
    sources::raise(request.until);
    if ban {
        sources::raise_banned(request.until);
    }
    answer::DONE
}

/// Regroup a source's log of pings.
#[inline(never)]
fn regroup(request: &Request) -> u32 {
    let (Some(source), Some(stamps)) =
        (sources::find(&request.source), maps::STAMPS.get_ptr_mut(0))
    else {
        return answer::NOT_FOUND;
    };
    let rate = Rate { limit: 0, window_ms: request.until as u32, shift: request.pings & 31 };
    // SAFETY: no arguments, no effects.
    let now_ms = millis(unsafe { bpf_ktime_get_coarse_ns() });
    // SAFETY: this CPU's element, which nothing else uses meanwhile.
    source.locked(|source| source.window.regroup(now_ms, rate, unsafe { &mut *stamps }));
    answer::DONE
}
