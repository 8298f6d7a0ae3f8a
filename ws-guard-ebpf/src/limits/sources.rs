//! Sources: their entries, coarser ones where the table is full, and the throttle deadlines that all
//! CPUs share.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use ws_guard_common::{
    maps::{
        Account, COARSE_LEVELS, Client, Counter, EventKind, Policy, SOURCES_FAIL_CLOSED, SourceKey,
    },
    source::{ALLOWED, BANNED, Source},
};

use crate::{
    context::Context,
    limits::rules::{look_up_rules, rule},
    maps::{self, COARSE, NEW_SOURCE, SHARED, SOURCES},
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
    pub(super) fn refresh(self, client: &Client, policy: &Policy) {
        // SAFETY: a single word; two CPUs would write the same.
        if unsafe { (*self.0).generation } != policy.generation {
            look_up_rules(self, client, policy);
        }
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
