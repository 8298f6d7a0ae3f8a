//! Who pings: looking sources up, charging them, and what all CPUs know of throttling.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::lpm_trie::Key,
    helpers::{bpf_spin_lock, bpf_spin_unlock},
};
use ws_guard_common::{
    maps::{Address, Counter, EventKind, Policy, Rule, SOURCES_FAIL_CLOSED},
    source::{ALLOWED, Source},
};

use crate::{
    maps::{NEW_SOURCE, RULES, SHARED, SOURCES},
    report, tables,
};

/// The source that an address belongs to, as the policy groups them.
#[inline(always)]
pub fn of(address: &Address, policy: &Policy) -> Address {
    let mask = if address.is_v4() { &policy.mask_v4 } else { &policy.mask_v6 };
    address.masked(mask)
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
pub fn find(source: &Address) -> Option<Entry> {
    SOURCES.get_ptr_mut(source).map(Entry)
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

    /// Look up again whether a rule exempts the address, if any rule changed since.
    #[inline(always)]
    fn refresh(self, address: &Address, policy: &Policy) {
        // SAFETY: a single word; two CPUs would write the same.
        if unsafe { (*self.0).rules_generation } == policy.rules_generation {
            return;
        }
        let allowed = policy.rules > 0
            && RULES
                .get(&Key::new(128, *address))
                .is_some_and(|rule| rule.flags & Rule::ALLOW != 0);
        let generation = policy.rules_generation;
        self.locked(|source| {
            source.flags = source.flags & !ALLOWED | if allowed { ALLOWED } else { 0 };
            source.rules_generation = generation;
        });
    }
}

/// Charge the source of `address` with pings on one connection, see [`Source::charge`]; returns how
/// many of them pass.
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
    let Some(source) = find_or_insert(&key, policy, now) else {
        let closed = policy.flags & SOURCES_FAIL_CLOSED != 0;
        return if closed { 0 } else { pings };
    };
    source.refresh(address, policy);
    let (charged, until) = source.locked(
        #[inline(always)]
        |source| {
            let charged = source.charge(now, policy, pings, share);
            (charged, source.throttled_until)
        },
    );
    if until > now {
        raise(until);
    }
    if charged.released {
        report::count(Counter::Released);
        report::source_event(EventKind::Released, &key, now, 0, 0);
    }
    if charged.throttled {
        report::count(Counter::Throttled);
        report::source_event(EventKind::Throttled, &key, now, pings as u64, 0);
    }
    charged.passed
}

/// The source's entry; made if there is none.
#[inline(always)]
pub fn find_or_insert(key: &Address, policy: &Policy, now: u64) -> Option<Entry> {
    if let Some(source) = find(key) {
        return Some(source);
    }
    make_room_and_insert(key, policy.rate.window_ms, now);
    find(key)
}

/// Add an entry, making room for it if there is none.
#[cold]
#[inline(never)]
fn make_room_and_insert(key: &Address, window_ms: u32, now: u64) {
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
fn insert(key: &Address) -> bool {
    let Some(empty) = NEW_SOURCE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the scratch value has the size of a source and is never written: all zero.
    unsafe { SOURCES.insert(key, &*empty.cast::<Source>(), BPF_NOEXIST.into()).is_ok() }
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
