//! Budgets of sources: bytes of their connections over a limit.

use ws_guard_common::{
    flow::Flow,
    pace::{CROWD_MS, STALL_MS, dense},
    source::{Source, elapsed_ms, millis},
};

use crate::limits::{
    at_hand,
    sources::{Entry, charged},
};

/// Steps of the clock between CPUs, ms.
const TICK_MS: u32 = 10;

/// Change the budgets of the connection's source, at the pace that is passed on. `without` where no table has
/// room for the source.
#[inline(always)]
fn of_source<T>(flow: &Flow, without: T, change: impl FnOnce(&mut Source, u32) -> T) -> T {
    let source = charged(&flow.account.source);
    if source.is_null() {
        return without;
    }
    Entry(source).locked(
        #[inline(always)]
        |source| {
            let rate = source.limits.pace;
            change(source, rate)
        },
    )
}

/// Grant the current segment's paced connection up to `wanted` bytes, and `least` if it has waited for long.
/// Returns the number granted. `more`: what its frames cost beyond their bytes.
#[inline(always)]
pub fn grant(now_ms: u32, wanted: u32, least: u32, more: u32) -> u32 {
    ws_guard_grant(now_ms, wanted, least, more)
}

/// [`grant`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_grant(now_ms: u32, wanted: u32, least: u32, more: u32) -> u32 {
    let Some((flow, _)) = at_hand() else {
        return least;
    };
    let waited = elapsed_ms(now_ms, flow.hold.moved_ms);
    of_source(
        flow,
        least,
        #[inline(always)]
        |source, rate| {
            source.budget.owe_frames(now_ms, rate, more);
            let granted = source.budget.take(now_ms, rate, wanted);
            let waits = waited < STALL_MS + source.firsts.patience(now_ms, rate, false);
            let rest = if waits { 0 } else { least.saturating_sub(granted) };
            source.budget.owe(rate, rest);
            source.firsts.owe_first(rate, rest, false);
            granted + rest
        },
    )
}

/// Request for bytes before or up to a first edge.
#[derive(Clone, Copy)]
pub struct First {
    /// Their number.
    pub wanted: u32,
    /// Number of them that may be under way already.
    pub sent: u32,
    /// Their cost.
    pub cost: u32,
    /// What the connection's latest frames, in `latest` bytes, cost beyond that.
    pub more: u32,
    pub latest: u32,
}

/// Bytes granted to a paced connection before or up to its first edge; all of them where no table has
/// room for its source.
#[inline(never)]
pub fn grant_first(flow: &Flow, now_ms: u32, first: First) -> u32 {
    let First { wanted, sent, cost, more, latest } = first;
    // Others have been paid for by the price of all frames.
    let owed = if dense(latest, more) { more } else { 0 };
    of_source(
        flow,
        wanted,
        #[inline(always)]
        |source, rate| {
            // Another CPU's clock may have been a tick ahead.
            let throttled_ms = now_ms.wrapping_sub(millis(source.throttled_since));
            let sent =
                if throttled_ms.wrapping_add(TICK_MS) < CROWD_MS + TICK_MS { sent } else { 0 };
            source.budget.owe_frames(now_ms, rate, more);
            source.firsts.take_first(now_ms, rate, wanted, sent, cost, owed)
        },
    )
}

/// Time that a connection waits longer for bytes that pass in any case, see
/// [`ws_guard_common::pace::Budget::patience`].
#[inline(never)]
pub fn patience(flow: &Flow, now_ms: u32, dense: bool) -> u32 {
    of_source(
        flow,
        0,
        #[inline(always)]
        |source, rate| source.firsts.patience(now_ms, rate, dense),
    )
}

/// Decide whether a segment of `len` bytes passes on a connection paced without its window.
/// `more`: what its frames cost beyond their bytes.
#[inline(never)]
pub fn police(flow: &Flow, now_ms: u32, len: u32, more: u32) -> bool {
    of_source(
        flow,
        false,
        #[inline(always)]
        |source, rate| {
            source.budget.owe_frames(now_ms, rate, more);
            source.budget.admits(now_ms, rate, len)
        },
    )
}

/// Take the bytes of a segment that passes because the server waits for it; its frames cost `cost`.
#[inline(never)]
pub fn owe_due(flow: &Flow, now_ms: u32, len: u32, cost: u32, dense: bool) -> bool {
    of_source(
        flow,
        true,
        #[inline(always)]
        |source, rate| {
            let owed = if source.budget.admits(now_ms, rate, len) { 0 } else { len };
            source.budget.owe(rate, owed);
            source.firsts.owe_first(rate, if owed == 0 { 0 } else { cost }, dense);
            true
        },
    )
}
