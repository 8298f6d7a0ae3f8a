//! Who pings: looking sources up, charging them, and what all CPUs know of throttling.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use ws_guard_common::{
    maps::{
        Address, Counter, EventKind, Limits, Policy, Rule, SOURCES_FAIL_CLOSED, SourceKey, TLS,
        action, own,
    },
    source::{ALLOWED, ESCALATED, Source},
};

use crate::{
    maps::{NEW_SOURCE, RULES, SHARED, SOURCES},
    report, tables,
    walk::forget,
};

/// The source that an address belongs to, as the policy groups them.
#[inline(always)]
pub fn of(address: &Address, policy: &Policy) -> SourceKey {
    let mask = if address.is_v4() { &policy.mask_v4 } else { &policy.mask_v6 };
    SourceKey { address: address.masked(mask), scope: policy.scope }
}

/// Somebody may be throttled: only then is a source worth looking up before it pings.
#[inline(always)]
pub fn any_throttled(now: u64) -> bool {
    match SHARED.get(0) {
        Some(shared) => shared.throttled_until > now,
        None => false,
    }
}

/// An entry of the source table, which stays mapped while a program runs.
#[derive(Clone, Copy)]
pub struct Entry(*mut Source);

/// The source's entry, if it has one.
#[inline(always)]
pub fn find(source: &SourceKey) -> Option<Entry> {
    SOURCES.get_ptr_mut(source).map(Entry)
}

/// A packet of `address` is to be dropped because of its source, and is counted.
#[inline(never)]
pub fn drop(address: &Address, policy: &Policy, now: u64) -> bool {
    let Some(source) = find(&of(address, policy)) else {
        return false;
    };
    let drops = source.is_throttled(address, policy, now) && source.action() == action::DROP;
    if drops {
        source.dropped();
    }
    drops
}

/// The longest rule that covers `address`.
#[inline(always)]
fn rule(address: &Address, policy: &Policy) -> Option<&'static Rule> {
    if policy.rules == 0 {
        return None;
    }
    RULES.get(&Key::new(128, *address))
}

/// What is done about what comes from `address`, where there are rules: one of [`action`]. Not for
/// every packet: only where something would be done.
#[inline(never)]
pub fn action_for(address: &Address, policy: &Policy) -> u8 {
    if let Some(source) = find(&of(address, policy)) {
        source.refresh(address, policy);
        return source.action();
    }
    match rule(address, policy) {
        Some(rule) if rule.flags & Rule::ALLOW != 0 => action::OBSERVE,
        Some(rule) if rule.flags & own::ACTION != 0 => rule.limits.action,
        _ => policy.action,
    }
}

impl Entry {
    /// The entry is throttled now, and no rule exempts `address`.
    #[inline(always)]
    pub fn is_throttled(self, address: &Address, policy: &Policy, now: u64) -> bool {
        // SAFETY: map values stay readable while a program runs; single words are read whole.
        if unsafe { (*self.0).throttled_until } <= now {
            return false;
        }
        self.refresh(address, policy);
        // SAFETY: as above.
        unsafe { (*self.0).flags & ALLOWED == 0 }
    }

    /// What is done about its pings over the limit: one of [`action`].
    #[inline(always)]
    pub fn action(self) -> u8 {
        // SAFETY: as in `is_throttled`.
        unsafe { (*self.0).action() }
    }

    /// Count a packet that was dropped because of its source.
    #[inline(always)]
    pub fn dropped(self) {
        report::count(Counter::DroppedThrottled);
        // SAFETY: the value stays mapped while the program runs; the addition is atomic.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(
                &raw mut (*self.0).dropped_total,
                1,
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

    /// Look up again what holds for the address, if any policy or rule changed since.
    #[inline(always)]
    fn refresh(self, address: &Address, policy: &Policy) {
        // SAFETY: a single word; two CPUs would write the same.
        if unsafe { (*self.0).generation } != policy.generation {
            look_up_rules(self, address, policy);
        }
    }
}

/// See [`Entry::refresh`]. Once for each source after a change.
#[cold]
#[inline(never)]
fn look_up_rules(source: Entry, address: &Address, policy: &Policy) {
    const { assert!(Rule::ALLOW == ALLOWED) };
    // Nothing is put together on the stack, which has no room left here.
    match rule(address, policy) {
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

/// [`charge`]'s answer: so many of the pings pass.
pub const PASSED: u32 = DROP - 1;
/// [`charge`]'s answer: the segment is to be dropped.
pub const DROP: u32 = 1 << 30;
/// [`charge`]'s answer: nothing is done about this source, whatever it sends.
pub const OBSERVED: u32 = 1 << 31;

/// Charge the source of `address` with pings on one connection, see [`Source::charge`]; the answer
/// in one word, [`PASSED`], [`DROP`] and [`OBSERVED`].
#[inline(never)]
pub fn charge(address: &Address, policy: &Policy, now: u64, pings: u32, share: u32) -> u32 {
    charge_some(address, policy, now, pings, share)
}

/// The same for one ping, which needs none of the loops.
#[inline(never)]
pub fn charge_one(address: &Address, policy: &Policy, now: u64, share: u32) -> u32 {
    charge_some(address, policy, now, 1, share & 1)
}

#[inline(always)]
fn charge_some(address: &Address, policy: &Policy, now: u64, pings: u32, share: u32) -> u32 {
    let key = of(address, policy);
    let source = Entry(up_to_date(&key, address, policy, now));
    if source.0.is_null() {
        return charge_nobody(policy, pings);
    }
    let (passed, over, spared, what) = source.locked(
        #[inline(always)]
        |source| {
            let charged = source.judge(now, pings, share);
            let observed = source.action() == action::OBSERVE;
            let what = if charged.dropped { DROP } else { 0 } | if observed { OBSERVED } else { 0 };
            (charged.passed, charged.over, charged.spared, what | charged.released as u32)
        },
    );
    let unknown = now as u32;
    let (passed, over, what) =
        (forget(passed, unknown), forget(over, unknown), forget(what, unknown));
    report::add(Counter::Spared, forget(spared, unknown).into());
    if what & RELEASED != 0 {
        report::count(Counter::Released);
        report::source_event(EventKind::Released, &key, now, 0, key.scope as u16);
    }
    if over > 0 {
        flooded(source, &key, now, pings, over);
    }
    if what & DROP != 0 {
        source.dropped();
    }
    passed | what & (DROP | OBSERVED)
}

/// In the course of [`charge`]: an earlier throttling had ended.
const RELEASED: u32 = 1;

/// The source's entry, with what holds for it now; null where the table has no room.
///
/// A function, with a plain pointer for an answer: so the verifier comes back from it in one state.
#[inline(never)]
fn up_to_date(key: &SourceKey, address: &Address, policy: &Policy, now: u64) -> *mut Source {
    match find_or_insert(key, policy, now) {
        Some(source) => {
            source.refresh(address, policy);
            source.0
        }
        None => core::ptr::null_mut(),
    }
}

/// `pings` pings of a source came, `over` of them over the limit: see [`Source::flooded`].
#[inline(never)]
fn flooded(source: Entry, key: &SourceKey, now: u64, pings: u32, over: u32) {
    let (new, until) = source.locked(
        #[inline(always)]
        |source| {
            let new = source.flooded(now, over);
            (new, source.throttled_until)
        },
    );
    raise(until);
    if new {
        report::count(Counter::Throttled);
        report::source_event(EventKind::Throttled, key, now, pings as u64, key.scope as u16);
    }
}

/// The source of `address` sent `over` frames over the limit of their class: the same as pings over
/// the limit. `true` when the segment is to be dropped.
#[inline(never)]
pub fn flood(address: &Address, policy: &Policy, now: u64, over: u32) -> bool {
    let key = of(address, policy);
    let source = Entry(up_to_date(&key, address, policy, now));
    // SAFETY: a single word of a map value, which stays readable while a program runs.
    if source.0.is_null() || unsafe { (*source.0).flags } & ALLOWED != 0 {
        return false;
    }
    flooded(source, &key, now, over, over);
    let drops = source.action() == action::DROP;
    if drops {
        source.dropped();
    }
    drops
}

/// A terminator reports pings that it decrypted. On a TLS port that is proof: a source that would be
/// defused, where nothing can be, is dropped until it is free again.
#[inline(always)]
pub fn reported(key: &SourceKey, policy: &Policy, now: u64, pings: u32) {
    let Some(source) = find(key) else {
        return;
    };
    // SAFETY: a single word of a map value, which stays readable while a program runs.
    let defused = unsafe { (*source.0).defused_total };
    let passed = charge(&key.address, policy, now, pings, 0) & PASSED;
    if policy.flags & TLS != 0 && passed < pings {
        source.locked(
            #[inline(always)]
            |source| {
                source.flags |= ESCALATED;
                source.defused_total = defused;
            },
        );
    }
}

/// Pings of a source that the table has no room for.
#[inline(always)]
fn charge_nobody(policy: &Policy, pings: u32) -> u32 {
    if policy.action == action::OBSERVE {
        pings | OBSERVED
    } else if policy.flags & SOURCES_FAIL_CLOSED != 0 {
        0
    } else {
        pings
    }
}

/// The source's entry; made if there is none.
#[inline(always)]
pub fn find_or_insert(key: &SourceKey, policy: &Policy, now: u64) -> Option<Entry> {
    if let Some(source) = find(key) {
        return Some(source);
    }
    make_room_and_insert(key, policy.rate.window_ms, now);
    find(key)
}

/// Add an entry, making room for it if there is none.
#[cold]
#[inline(never)]
fn make_room_and_insert(key: &SourceKey, window_ms: u32, now: u64) {
    if insert(key) || (tables::reclaim_sources(now, window_ms) && insert(key)) {
        return;
    }
    // Another CPU may have inserted it meanwhile.
    if find(key).is_none() {
        report::count(Counter::SourcesRefused);
        report::source_event(EventKind::TableFull, key, now, 0, 1);
    }
}

/// Add an empty entry. `false` when there is no room, or when there is one already.
#[inline(always)]
fn insert(key: &SourceKey) -> bool {
    tables::insert_empty(&SOURCES, &NEW_SOURCE, key)
}

/// Let all CPUs know that somebody is throttled until `until`.
#[inline(always)]
pub fn raise(until: u64) {
    let Some(shared) = SHARED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: read whole; written under the lock, and only upwards.
    unsafe {
        if (*shared).throttled_until >= until {
            return;
        }
        bpf_spin_lock((&raw mut (*shared).lock).cast());
        if (*shared).throttled_until < until {
            (*shared).throttled_until = until;
        }
        bpf_spin_unlock((&raw mut (*shared).lock).cast());
    }
}
