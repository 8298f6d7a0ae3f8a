//! Frames that are no pings, and TLS records: each connection has a limit for each class of them.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use ws_guard_common::{
    flood::{CLASSES, Flood, FloodKey},
    flow::Flow,
    maps::{Counter, FlowKey, Policy, SourceKey},
    source::millis,
    verifier::forget,
    window::Rate,
};

use crate::{
    maps::{self, FLOODS, NEW_FLOOD},
    packet, report,
    scene::Scene,
    sources, tables,
    walk::{self, State},
};

/// Charge the connection of the segment at hand with the frames of the walk that was just taken over.
/// `true` when the segment is to be dropped.
#[inline(always)]
pub fn charge(scene: &Scene, flow: &mut Flow) -> bool {
    let over = ws_guard_floods(scene.now);
    if over == 0 {
        return false;
    }
    report::add(Counter::FramesOver, over.into());
    sources::flood(scene, flow, over)
}

/// The frames that are over a limit. Its name is in the object's BTF: the verifier checks it on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_floods(now: u64) -> u32 {
    let (Some(state), Some(segment)) = (walk::resume(), packet::segment()) else {
        return 0;
    };
    let Some(policy) = maps::policy_of(segment.key.server_port) else {
        return 0;
    };
    charge_all(state, connection(&segment.key, policy), policy, now)
}

/// The connection as a source of its own: its neighbours behind the same address are charged for
/// themselves.
#[inline(always)]
fn connection(key: &FlowKey, policy: &Policy) -> SourceKey {
    let scope = SourceKey::of_connection(policy.scope, key.client_port);
    SourceKey { address: key.client, scope }
}

#[inline(always)]
fn charge_all(state: &State, source: SourceKey, policy: &Policy, now: u64) -> u32 {
    let mut key = FloodKey { source, class: 0 };
    let mut over = 0;
    let mut class = 0;
    while class < CLASSES {
        let (frames, rate) = (state.classes.0[class], &policy.class_limits[class]);
        key.class = class as u32;
        if frames > 0 && rate.limit > 0 {
            over += charge_class(&key, rate, now, frames);
        }
        class += 1;
    }
    forget(over, now as u32)
}

/// Log frames of one class; how many of them are over the limit. None where there is no room.
#[inline(never)]
fn charge_class(key: &FloodKey, rate: &Rate, now: u64, frames: u32) -> u32 {
    let Some(flood) = find_or_insert(key, rate, now) else {
        report::count(Counter::SourcesRefused);
        return 0;
    };
    let now_ms = millis(now);
    // SAFETY: the value stays mapped while the program runs, and the lock guards it.
    let within = unsafe {
        bpf_spin_lock((&raw mut (*flood).lock).cast());
        let within = (*flood).window.charge(now_ms, *rate, frames);
        bpf_spin_unlock((&raw mut (*flood).lock).cast());
        within
    };
    forget(frames - within, now as u32)
}

#[inline(always)]
fn find_or_insert(key: &FloodKey, rate: &Rate, now: u64) -> Option<*mut Flood> {
    if let Some(flood) = FLOODS.get_ptr_mut(key) {
        return Some(flood);
    }
    if !insert(key) && tables::reclaim_floods(now, rate.window_ms) {
        insert(key);
    }
    // Another CPU may have been faster: then its entry is found.
    FLOODS.get_ptr_mut(key)
}

/// Add an empty entry. `false` when there is no room, or when there is one already.
#[inline(always)]
fn insert(key: &FloodKey) -> bool {
    tables::insert_empty(&FLOODS, &NEW_FLOOD, key)
}
