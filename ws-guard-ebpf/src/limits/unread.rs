//! Bytes that may hide frames, of clients that let nothing out that would show them.

use ws_guard_common::{offer::unread, source::millis, verifier::forget};

use crate::{
    context::{Context, throttled},
    limits::sources::{self, Entry},
    maps::{self, FLOWS},
    opening::pending_upgrades,
    packet,
};

/// Pace of unread bytes where the connections of their source are not paced.
const PACE: u32 = 16 * 1024;

/// Decide whether the segment passes, after a decision of [`unread`]: where the server may not answer,
/// at its source's pace, and without one as long as few bytes have passed.
#[inline(always)]
pub fn admits(now: u64, decided: u32) -> bool {
    match decided {
        unread::PASSES => true,
        unread::REFUSED => false,
        _ => ws_guard_admits_unread(now, decided) != 0,
    }
}

/// [`admits`], of a connection without a flow: with what passed as read behind the segment, see
/// [`Unopened::behind`](ws_guard_common::maps::Unopened::behind).
#[inline(always)]
pub fn admits_first(context: &Context, decided: u32) -> bool {
    let decided = match decided {
        unread::UNHEARD if throttled(context) => unread::SHARED,
        unread::UNHEARD => unread::PASSES,
        unread::GONE if throttled(context) => unread::REFUSED,
        other => other,
    };
    let admits = admits(context.now, decided);
    if admits && decided == unread::FEW {
        pending_upgrades::pay_behind();
    }
    admits
}

/// [`admits`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_admits_unread(now: u64, decided: u32) -> u32 {
    let few = (decided == unread::FEW) as u32;
    let (Some(segment), Some(account)) = (packet::segment(), packet::account()) else {
        return few;
    };
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return few;
    };
    if let Some(flow) = FLOWS.get_ptr(&segment.key) {
        // SAFETY: a part of a map value, which stays mapped while a program runs.
        *account = unsafe { (*flow).account };
    }
    let source = sources::up_to_date(policy, account, now);
    if source.is_null() {
        return few;
    }
    let (now_ms, len) = (millis(now), segment.len.saturating_add(pending_upgrades::behind()));
    let shared = decided == unread::SHARED;
    let admits = Entry(source).locked(
        #[inline(always)]
        |source| {
            let rate = source.limits.pace;
            if rate == 0 && !shared && decided != unread::GONE {
                return few;
            }
            let rate = if rate == 0 { PACE } else { rate };
            let first = shared && source.firsts.admits_first(now_ms, rate, len);
            (first || source.budget.admits(now_ms, rate, len)) as u32
        },
    );
    forget(admits, len)
}
