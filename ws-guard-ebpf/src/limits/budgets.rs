//! Budgets of sources: bytes of their connections over a limit.

use ws_guard_common::{flow::Flow, pace::STALL_MS, source::Source};

use crate::limits::sources::{Entry, charged};

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

/// Grant a paced connection up to `wanted` bytes, and `least` if it has waited for long.
/// Returns the number granted. `more`: what its frames cost beyond their bytes.
#[inline(always)]
pub fn grant(flow: &Flow, now_ms: u32, wanted: u32, least: u32, more: u32) -> u32 {
    let waited = now_ms.wrapping_sub(flow.hold.moved_ms);
    of_source(
        flow,
        least,
        #[inline(always)]
        |source, rate| {
            source.budget.owe_frames(now_ms, rate, more);
            let granted = source.budget.take(now_ms, rate, wanted);
            let waits = waited < STALL_MS + source.firsts.patience(now_ms, rate);
            let rest = if waits { 0 } else { least.saturating_sub(granted) };
            source.budget.owe(rate, rest);
            source.firsts.owe_first(rate, rest);
            granted + rest
        },
    )
}

/// Bytes of `wanted` granted to a paced connection before or up to its first edge; all of them
/// where no table has room for its source. They cost `cost`, and its frames cost `more` than their bytes.
#[inline(never)]
pub fn grant_first(flow: &Flow, now_ms: u32, wanted: u32, cost: u32, more: u32) -> u32 {
    of_source(
        flow,
        wanted,
        #[inline(always)]
        |source, rate| {
            source.budget.owe_frames(now_ms, rate, more);
            source.firsts.take_first(now_ms, rate, wanted, cost, more)
        },
    )
}

/// Time that a connection waits longer for bytes that pass in any case, see
/// [`ws_guard_common::pace::Budget::patience`].
#[inline(never)]
pub fn patience(flow: &Flow, now_ms: u32) -> u32 {
    of_source(
        flow,
        0,
        #[inline(always)]
        |source, rate| source.firsts.patience(now_ms, rate),
    )
}

/// Decide whether a segment of `len` bytes passes on a connection paced without its window; a `due`
/// one always does. `more`: what its frames cost beyond their bytes.
#[inline(never)]
pub fn police(flow: &Flow, now_ms: u32, len: u32, due: bool, more: u32) -> bool {
    of_source(
        flow,
        due,
        #[inline(always)]
        |source, rate| {
            source.budget.owe_frames(now_ms, rate, more);
            let admits = source.budget.admits(now_ms, rate, len);
            let owed = if due && !admits { len } else { 0 };
            source.budget.owe(rate, owed);
            source.firsts.owe_first(rate, owed);
            admits || due
        },
    )
}
