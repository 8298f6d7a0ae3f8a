//! Sources: look-up, charging for pings, and the throttle deadlines that all CPUs share.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use ws_guard_common::{
    flow::Flow,
    maps::{
        Account, BAN_FORCED, COARSE_LEVELS, Client, Counter, EventKind, Limits, Network, Policy,
        Rule, SOURCES_FAIL_CLOSED, SourceKey, action, identity, own,
    },
    source::{ALLOWED, BANNED, Pings, Source, millis},
    tracker::Walk,
    verifier::forget,
};

use crate::{
    context::Context,
    maps::{self, COARSE, FLOWS, NEW_SOURCE, RULES, SHARED, SOURCES, locked},
    opening::identify,
    packet, report, tables,
};

/// Check whether any source may be throttled: otherwise none is looked up before it pings.
#[inline(always)]
pub fn any_throttled(now: u64) -> bool {
    match SHARED.get(0) {
        Some(shared) => shared.throttled_until > now,
        None => false,
    }
}

/// Check whether any source may be banned.
#[inline(always)]
pub fn any_banned(now: u64) -> bool {
    match SHARED.get(0) {
        Some(shared) => shared.banned_until > now,
        None => false,
    }
}

/// Entry of the source table; it stays mapped while a program runs.
#[derive(Clone, Copy)]
pub struct Entry(pub *mut Source);

/// Find the entry of a source or of a coarser prefix, as `source` says.
#[inline(always)]
pub fn find(source: &SourceKey) -> Option<Entry> {
    if source.level() > 0 {
        return COARSE.get_ptr_mut(source).map(Entry);
    }
    SOURCES.get_ptr_mut(source).map(Entry)
}

/// Find the entry that a source is charged to: its own, or that of a coarser prefix.
#[inline(never)]
pub(super) fn charged(source: &SourceKey) -> *mut Source {
    if let Some(source) = SOURCES.get_ptr_mut(source) {
        return source;
    }
    let mut level = 1;
    while level <= COARSE_LEVELS {
        let Some(coarse) = source.coarser(level) else {
            break;
        };
        if let Some(source) = COARSE.get_ptr_mut(&coarse) {
            return source;
        }
        level += 1;
    }
    core::ptr::null_mut()
}

/// Check whether to drop the packet because its source is banned, and count it then.
#[inline(never)]
pub fn drop_banned(context: &Context) -> bool {
    let Some(source) = find(context.source()) else {
        return false;
    };
    if !source.is_throttled(context.client(), context.policy, context.now) {
        return false;
    }
    // SAFETY: a single word of a map value, which stays readable while a program runs.
    let banned = unsafe { (*source.0).flags } & BANNED != 0;
    if banned {
        report::count(Counter::DroppedThrottled);
        source.dropped(1);
    }
    banned
}

/// Longest rule that covers the client.
/// A rule for a proxy does not apply to the unidentified clients behind it.
#[inline(always)]
fn rule(client: &Client, policy: &Policy) -> Option<&'static Rule> {
    if policy.rules == 0 || client.identity == identity::CONNECTION {
        return None;
    }
    RULES.get(&Key::new(Network::ALL_BITS, Network::of(&client.address)))
}

/// [`action`] for the client's connections over the limit.
/// Too slow for every packet: call it only before something is done.
#[inline(never)]
pub fn action_for(context: &Context) -> u8 {
    let (client, policy) = (context.client(), context.policy);
    if let Some(source) = find(context.source()) {
        source.refresh(client, policy);
        return source.action();
    }
    ruled(client, policy)
}

/// Decide again how to treat the current connection, which is over the limit, after a policy or a
/// rule has changed.
#[inline(always)]
pub fn judge_again(now: u64) {
    ws_guard_judge_again(now);
}

/// [`judge_again`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_judge_again(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let client = &flow.account.client;
    let (action, paces) = match find(&flow.account.source) {
        Some(source) => {
            source.refresh(client, policy);
            (source.action(), source.paces())
        }
        None => (ruled(client, policy), ruled_pace(client, policy)),
    };
    flow.treat(action >= action::DROP, paces, policy.generation, millis(now));
    0
}

/// Decide how to treat the current connection, over the limit, where no table has room for its
/// source. Returns the [`action`]. A global function, as above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_ruled(now: u64) -> u32 {
    let Some((flow, policy)) = at_hand() else {
        return 0;
    };
    let client = &flow.account.client;
    let (action, paces) = (ruled(client, policy), ruled_pace(client, policy));
    flow.treat(action >= action::DROP, paces, policy.generation, millis(now));
    action.into()
}

/// Check whether the rules pace the client's connections over the limit.
#[inline(always)]
fn ruled_pace(client: &Client, policy: &Policy) -> bool {
    let pace = match rule(client, policy) {
        Some(rule) if rule.flags & own::PACE != 0 => rule.limits.pace,
        _ => policy.pace,
    };
    pace > 0 && ruled(client, policy) == action::DEFUSE
}

/// [`action`] for the client's connections over the limit, by the rules alone.
#[inline(always)]
fn ruled(client: &Client, policy: &Policy) -> u8 {
    match rule(client, policy) {
        Some(rule) if rule.flags & Rule::ALLOW != 0 => action::OBSERVE,
        Some(rule) if rule.flags & own::ACTION != 0 => rule.limits.action,
        _ => policy.action,
    }
}

impl Entry {
    /// Check whether the entry is throttled now and no rule exempts the client.
    #[inline(always)]
    pub fn is_throttled(self, client: &Client, policy: &Policy, now: u64) -> bool {
        // SAFETY: map values stay readable while a program runs; single words are read whole.
        if unsafe { (*self.0).throttled_until } <= now {
            return false;
        }
        self.refresh(client, policy);
        // SAFETY: as above.
        unsafe { (*self.0).flags & ALLOWED == 0 }
    }

    /// [`action`] for its connections over the limit.
    #[inline(always)]
    pub fn action(self) -> u8 {
        // SAFETY: as in `is_throttled`.
        unsafe { (*self.0).action() }
    }

    /// Check whether its connections over the limit are paced.
    #[inline(always)]
    pub fn paces(self) -> bool {
        // SAFETY: as in `is_throttled`.
        unsafe { (*self.0).paces() }
    }

    /// Count dropped packets.
    #[inline(always)]
    pub fn dropped(self, packets: u64) {
        // SAFETY: the value stays mapped while the program runs; the addition is atomic.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(
                &raw mut (*self.0).dropped_total,
                packets,
            );
        }
    }

    /// Change the entry under its lock, see [`crate::maps::locked`].
    #[inline(always)]
    pub fn locked<T>(self, change: impl FnOnce(&mut Source) -> T) -> T {
        // SAFETY: the value stays mapped while the program runs, and the lock guards it.
        unsafe {
            bpf_spin_lock((&raw mut (*self.0).lock).cast());
            let result = change(&mut *self.0);
            bpf_spin_unlock((&raw mut (*self.0).lock).cast());
            result
        }
    }

    /// Look up the client's limits again if a policy or a rule has changed.
    #[inline(always)]
    fn refresh(self, client: &Client, policy: &Policy) {
        // SAFETY: a single word; two CPUs would write the same.
        if unsafe { (*self.0).generation } != policy.generation {
            look_up_rules(self, client, policy);
        }
    }
}

/// [`Entry::refresh`], once for each source after a change.
#[cold]
#[inline(never)]
fn look_up_rules(source: Entry, client: &Client, policy: &Policy) {
    const { assert!(Rule::ALLOW == ALLOWED) };
    // Nothing is built on the stack, which has no room left here.
    match rule(client, policy) {
        Some(rule) => source.locked(
            #[inline(always)]
            |source| {
                source.limits = Limits::of(policy).with(rule);
                source.flags = source.flags & !ALLOWED | rule.flags & ALLOWED;
                source.generation = policy.generation;
            },
        ),
        None => source.locked(
            #[inline(always)]
            |source| {
                source.limits = Limits::of(policy);
                source.flags &= !ALLOWED;
                source.generation = policy.generation;
            },
        ),
    }
}

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

/// Flow and policy of the current segment.
#[inline(always)]
pub fn at_hand() -> Option<(&'static mut Flow, &'static Policy)> {
    let key = &packet::segment()?.key;
    let policy = maps::policy_of(key.server_port)?;
    // SAFETY: map values stay mapped while a program runs; changes are made under the lock, or to
    // single words.
    FLOWS.get_ptr_mut(key).map(|flow| (unsafe { &mut *flow }, policy))
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
    report::add(Counter::Spared, forget(spared, unknown).into());
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
        flow.over_until = if until > flow.over_until { until } else { flow.over_until };
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

/// Entry of the account's source with its current limits; null where no table has room.
#[inline(always)]
pub fn up_to_date(policy: &Policy, account: &Account, now: u64) -> *mut Source {
    let source = find_or_insert(account, now);
    if !source.is_null() {
        Entry(source).refresh(&account.client, policy);
    }
    source
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

/// Find or insert the source's entry.
/// With a full table, that of a coarser prefix; null where there is none either, and for a client
/// with a rule, which does not apply to others in such a prefix.
#[inline(never)]
fn find_or_insert(charged: &Account, now: u64) -> *mut Source {
    let key = &charged.source;
    if let Some(source) = find(key) {
        return source.0;
    }
    let Some(account) = packet::account() else {
        return core::ptr::null_mut();
    };
    *account = *charged;
    let level = ws_guard_make_source(now);
    if level == 0 {
        return find(key).map_or(core::ptr::null_mut(), |source| source.0);
    }
    match key.coarser(level) {
        Some(coarse) => find(&coarse).map_or(core::ptr::null_mut(), |source| source.0),
        None => core::ptr::null_mut(),
    }
}

/// Insert an entry for the source in [`packet::account`], or make sure that a coarser prefix has
/// one. Returns the level of the entry, or [`NO_LEVEL`].
///
/// A global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_make_source(now: u64) -> u32 {
    let Some(account) = packet::account() else {
        return NO_LEVEL;
    };
    let key = &account.source;
    let Some(policy) = maps::policy_of_scope(key.scope()) else {
        return NO_LEVEL;
    };
    // Another CPU may have inserted it meanwhile: its first ping is not logged yet, and a sweep would
    // take it for an idle one.
    if insert(key) || find(key).is_some() {
        return 0;
    }
    let made = tables::reclaim_sources(now, policy.rate.window_ms) && insert(key);
    if made || find(key).is_some() {
        return 0;
    }
    report::count(Counter::SourcesRefused);
    report::source_event(EventKind::TableFull, key, None, now, 0, 1);
    let closed = policy.flags & SOURCES_FAIL_CLOSED != 0 || rule(&account.client, policy).is_some();
    let mut level = 1;
    while level <= COARSE_LEVELS && !closed {
        match key.coarser(level) {
            Some(coarse) if has_coarse(&coarse) => return level,
            Some(_) => {}
            None => break,
        }
        level += 1;
    }
    NO_LEVEL
}

/// Past the coarsest level.
const NO_LEVEL: u32 = 0xFF;

/// Find or insert an entry for the coarser prefix. `false` where there is no room.
#[inline(always)]
fn has_coarse(key: &SourceKey) -> bool {
    COARSE.get_ptr_mut(key).is_some() || tables::insert_empty(&COARSE, &NEW_SOURCE, key)
}

/// Entry for a report or an operator's decision about a source.
/// `None` where there is no room. A report may be charged to a coarser prefix then; a decision is
/// never about one.
#[inline(always)]
pub fn entry(key: &SourceKey, now: u64, report: bool) -> Option<Entry> {
    let account = Account { client: Client::of_peer(&key.address), source: *key };
    let source = find_or_insert(&account, now);
    if report && !source.is_null() { Some(Entry(source)) } else { find(key) }
}

/// Add an empty entry. `false` when there is no room, or when there is one already.
#[inline(always)]
fn insert(key: &SourceKey) -> bool {
    tables::insert_empty(&SOURCES, &NEW_SOURCE, key)
}

/// Let all CPUs know that a source is throttled until `until`.
#[inline(always)]
pub fn raise(until: u64) {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: an array element.
        unsafe {
            raise_word(&raw mut (*shared).lock.val, &raw mut (*shared).throttled_until, until)
        };
    }
}

/// Let all CPUs know that a source is banned until `until`.
#[inline(always)]
pub fn raise_banned(until: u64) {
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // SAFETY: an array element.
        unsafe { raise_word(&raw mut (*shared).lock.val, &raw mut (*shared).banned_until, until) };
    }
}

/// Raise `word` to `until`: one read, a write under the lock, never downwards.
///
/// # Safety
/// Both point into the one element of [`SHARED`].
#[inline(always)]
unsafe fn raise_word(lock: *mut u32, word: *mut u64, until: u64) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        if *word >= until {
            return;
        }
        bpf_spin_lock(lock.cast());
        if *word < until {
            *word = until;
        }
        bpf_spin_unlock(lock.cast());
    }
}
