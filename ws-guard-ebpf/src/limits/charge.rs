//! Charging: pings of a segment, on their connection and its source; throttles and bans.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use ws_guard_common::{
    flow::Flow,
    maps::{BAN_FORCED, Client, Counter, EventKind, Policy, SourceKey, action, identity},
    source::{ALLOWED, BANNED, Pings, Source, millis},
    tracker::Walk,
    verifier::forget,
};

use crate::{
    context::Context,
    limits::{
        at_hand,
        rules::ws_guard_ruled,
        sources::{Entry, charged, find, raise, raise_banned, up_to_date},
    },
    maps::locked,
    opening::identify,
    packet, report, tables,
};

/// [`charge`]'s result: mask of the number of pings within the limit.
pub const KEPT: u32 = DROP - 1;
/// [`charge`]'s result: some pings are over the limit, and the segment is to be dropped.
pub const DROP: u32 = 1 << 30;
/// [`charge`]'s result: the source is only observed.
pub const OBSERVED: u32 = 1 << 31;

/// Charge the current flow and its source with `count` pings, see [`Source::charge`]. The result is
/// one word: [`KEPT`], [`DROP`] and [`OBSERVED`].
#[inline(always)]
pub fn charge(now: u64, count: u32) -> u32 {
    ws_guard_charge(now, count)
}

/// [`charge`], as a global function: the verifier checks it and its loops once, not at each call.
/// The price is a second look-up of the flow.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_charge(now: u64, count: u32) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return count & KEPT;
    };
    let (now_ms, window_ms) = (millis(now), policy.rate.window_ms);
    let (share, most) = locked(
        flow,
        #[inline(always)]
        |flow| {
            let share = flow.share_room(now_ms, policy.share, window_ms, count);
            (share, flow.charge(now_ms, policy.connection_rate, count))
        },
    );
    let (share, most) = (forget(share, now_ms), forget(most, now_ms));
    charge_source(policy, flow, now, Pings { count, share, most, held: 0 })
}

/// Charge the flow's source with one ping that the flow is charged with already.
/// `share` and `most`: 1 if it is within the connection's share and own limit, otherwise 0.
#[inline(never)]
pub fn charge_one(context: &Context, flow: &mut Flow, share: u32, most: u32) -> u32 {
    let pings = Pings { count: 1, share: share & 1, most: most & 1, held: 0 };
    charge_source(context.policy, flow, context.now, pings)
}

/// Pings that a connection over the limit may still send: its share, or any number while its source
/// has room.
#[inline(always)]
pub fn budget(now: u64) -> u32 {
    ws_guard_budget(now)
}

/// [`budget`], as a global function.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_budget(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return Walk::UNLIMITED;
    };
    let now_ms = millis(now);
    let source = charged(&flow.account.source);
    let room = !source.is_null()
        && Entry(source).locked(
            #[inline(always)]
            |source| source.window.has_room(now_ms, source.limits.rate),
        );
    if room {
        return Walk::UNLIMITED;
    }
    let share = policy.share;
    flow.share_room(now_ms, share, policy.rate.window_ms, share)
}

/// Internal to [`charge`]: an earlier throttle had expired.
const RELEASED: u32 = 1;
/// Internal to [`charge`]: the source was throttled before, and nothing else follows.
const PLAIN: u32 = 2;
/// Nanoseconds in a millisecond.
const MS: u64 = 1_000_000;

#[inline(always)]
fn charge_source(policy: &Policy, flow: &mut Flow, now: u64, mut pings: Pings) -> u32 {
    let source = Entry(up_to_date(policy, &flow.account, now));
    if source.0.is_null() {
        return charge_share(policy, flow, now, pings);
    }
    add_dropped(source, flow);
    let over_limit = flow.is_over_limit(now) as u32;
    let (kept, spared, what) = source.locked(
        #[inline(always)]
        |source| {
            pings.held = over_limit & (source.limits.min_throttle_ms > 0) as u32;
            let charged = source.judge(now, pings);
            let action = source.action();
            let observed = if action == action::OBSERVE { OBSERVED } else { 0 };
            let drops = if action >= action::DROP { DROP } else { 0 };
            let plain =
                charged.goes_on & (source.limits.escalate_after == 0) & (action < action::BAN);
            let plain = if plain { PLAIN } else { 0 };
            (charged.kept, charged.spared, observed | drops | plain | charged.released as u32)
        },
    );
    let unknown = now as u32;
    let (kept, what) = (forget(kept, unknown), forget(what, unknown));
    let spared = forget(spared, unknown);
    if spared != 0 {
        report::add(Counter::Spared, spared.into());
    }
    if what & RELEASED != 0 {
        report::count(Counter::Released);
        report::source_event(EventKind::Released, &flow.account.source, None, now, 0, 0);
    }
    let over = pings.count.wrapping_sub(kept);
    if over == 0 {
        return kept | what & OBSERVED;
    }
    if over_limit != 0 && what & PLAIN != 0 {
        // The most common case: a flood goes on.
        let until = now + policy.rate.window_ms as u64 * MS;
        flow.exceeds(now, until);
        raise(until);
    } else if ws_guard_exceeded(now, pings.count, over) != 0 {
        ws_guard_ban(now);
    }
    if what & DROP != 0 {
        count_dropped(flow);
    }
    kept | what & (DROP | OBSERVED)
}

/// Count a segment of the flow that is dropped because of the limit.
#[inline(always)]
pub fn count_dropped(flow: &mut Flow) {
    report::count(Counter::DroppedThrottled);
    // SAFETY: the value stays mapped while the program runs; the addition is atomic.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut flow.dropped, 1);
    }
}

/// Add the flow's dropped segments to its source's.
#[inline(always)]
fn add_dropped(source: Entry, flow: &mut Flow) {
    let packets = flow.dropped;
    if packets != 0 {
        flow.dropped = 0;
        source.dropped(packets);
    }
}

/// Add an ended flow's dropped segments to its source's.
#[cold]
#[inline(never)]
pub fn settle_dropped(context: &Context, flow: &mut Flow) {
    if let Some(source) = find(context.source()) {
        add_dropped(source, flow);
    }
}

/// Mark the current connection and its source as over the limit, for a window from now on: of
/// `count` pings or other frames, `over` were too many. Not 0 where the source may be banned.
///
/// A global function: the verifier checks it once, not at each call. The price is a second look-up
/// of flow and source.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_exceeded(now: u64, count: u32, over: u32) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let account = &raw const flow.account;
    // SAFETY: nothing is written there.
    let account = unsafe { &*account };
    let source = Entry(charged(&account.source));
    if source.0.is_null() {
        return 0;
    }
    let (new, until, limits, action, paces) = source.locked(
        #[inline(always)]
        |source| {
            let new = source.flooded(now, over);
            let limits = (source.limits.rate.window_ms, source.limits.min_throttle_ms);
            (new, source.throttled_until, limits, source.action(), source.paces())
        },
    );
    raise(until);
    report::add(Counter::Throttled, new.into());
    let (window_ms, least_ms) = limits;
    let first = if least_ms > window_ms && !flow.is_over_limit(now) { least_ms } else { window_ms };
    flow.treat(action >= action::DROP, paces, policy.generation, millis(now));
    if flow.exceeds(now, now + first as u64 * MS) {
        let (source, value) = (&account.source, count as u64);
        report::source_event(EventKind::Throttled, source, packet::key(), now, value, 0);
    }
    (action == action::BAN) as u32
}

/// Ban the current source, unless it is a trusted proxy or has other connections within the limit:
/// then only the connections over the limit are dropped.
///
/// A global function, as above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_ban(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let Some(source) = find(&flow.account.source) else {
        return 0;
    };
    // SAFETY: single words of a map value, which stays readable while a program runs.
    let (flags, until) = unsafe { ((*source.0).flags, (*source.0).throttled_until) };
    if flags & BANNED == 0 {
        let forced = policy.flags & BAN_FORCED != 0;
        let client = &flow.account.client;
        let proxy =
            client.identity == identity::PEER && identify::trusts(&client.address, policy.proxies);
        if !forced && (proxy || !tables::is_alone(flow, now)) {
            return 0;
        }
        source.locked(
            #[inline(always)]
            |source| source.flags |= BANNED,
        );
        report::source_event(EventKind::Banned, &flow.account.source, None, now, 0, 0);
    }
    raise_banned(until);
    0
}

/// Treat `over` frames over the limit of their class as pings over the limit.
/// `true` when the segment is to be dropped.
#[inline(never)]
pub fn flood(context: &Context, flow: &mut Flow, over: u32) -> bool {
    let source = Entry(up_to_date(context.policy, &flow.account, context.now));
    // SAFETY: a single word of a map value, which stays readable while a program runs.
    if source.0.is_null() || unsafe { (*source.0).flags } & ALLOWED != 0 {
        return false;
    }
    if ws_guard_exceeded(context.now, over, over) != 0 {
        ws_guard_ban(context.now);
    }
    let drops = source.action() >= action::DROP;
    if drops {
        count_dropped(flow);
    }
    drops
}

/// Charge a source with the pings that a TLS terminator decrypted and reports, for a client and not
/// for one connection. `true` when some are over the limit.
#[inline(always)]
pub fn reported(source: Entry, key: &SourceKey, policy: &Policy, now: u64, count: u32) -> bool {
    source.refresh(&Client::of_peer(&key.address), policy);
    let (over, released) = judge_reported(source.0, now, count);
    let (over, released) = (forget(over, now as u32), forget(released, now as u32));
    if released != 0 {
        report::count(Counter::Released);
        report::source_event(EventKind::Released, key, None, now, 0, 0);
    }
    if over != 0 {
        let (new, until) = source.locked(
            #[inline(always)]
            |source| (source.flooded(now, over), source.throttled_until),
        );
        raise(until);
        if new {
            report::count(Counter::Throttled);
            report::source_event(EventKind::Throttled, key, None, now, count as u64, 0);
        }
    }
    over != 0
}

/// Number of them over the limit, and whether an earlier throttle had expired.
#[inline(never)]
fn judge_reported(source: *mut Source, now: u64, count: u32) -> (u32, u32) {
    Entry(source).locked(
        #[inline(always)]
        |source| {
            // They were delivered already, so none of them is defused.
            let defused = source.defused_total;
            let charged = source.judge(now, Pings { count, share: 0, most: count, held: 0 });
            source.defused_total = defused;
            (charged.over, charged.released as u32)
        },
    )
}

/// Charge the connection's share alone, where no table has room for the source.
#[inline(always)]
fn charge_share(policy: &Policy, flow: &mut Flow, now: u64, pings: Pings) -> u32 {
    let kept = if pings.share < pings.most { pings.share } else { pings.most };
    if kept == pings.count {
        return kept;
    }
    let action = ws_guard_ruled(now) as u8;
    let observed = if action == action::OBSERVE { OBSERVED } else { 0 };
    flow.exceeds(now, now + policy.rate.window_ms as u64 * MS);
    if action >= action::DROP {
        count_dropped(flow);
        return kept | DROP;
    }
    kept | observed
}
