//! Room in full tables.
//!
//! Entries are reclaimed only under pressure, and only such that protect nothing any more: flows
//! that ended or were silent for long, sources with nothing left in their window. Idling must not
//! be a way to be forgotten.

use core::ffi::{c_long, c_void};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{HashMap, PerCpuArray},
    helpers::{bpf_for_each_map_elem, bpf_get_prandom_u32, bpf_map_delete_elem},
};
use ws_guard_common::{
    flood::{Flood, FloodKey},
    flow::Flow,
    maps::{Counter, EventKind, FLOWS_FAIL_CLOSED, FlowKey, SourceKey},
    source::{Source, millis},
};

use crate::{
    maps::{FLOODS, FLOWS, NEW_FLOW, SHARED, SOURCES, STRANGERS},
    report, requests,
    scene::{Scene, Verdict},
};

/// A full table is searched at most this often, in nanoseconds: a search touches every entry.
const SWEEP_INTERVAL: u64 = 1_000_000_000;
/// Sources silent for this long have nothing left in any window (which lasts an hour at most).
const IDLE_SOURCE: u64 = 3_600_000_000_000;

/// What a sweep's callback works on. It holds nothing that changes from one element to the next:
/// the verifier follows a callback until it comes to a state that it knows.
struct Sweep {
    now: u64,
    /// Sources that last pinged before `now - window` have an empty log.
    window: u64,
}

/// It is time for a sweep, and this call is the one to make it.
#[inline(always)]
fn may_sweep(now: u64) -> bool {
    let Some(shared) = SHARED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: an array element. Two CPUs may both find that it is time: then both sweep, no harm.
    unsafe {
        let due = now.wrapping_sub((*shared).swept) >= SWEEP_INTERVAL;
        if due {
            (*shared).swept = now;
        }
        due
    }
}

/// What the kernel calls for each element of a map.
type Visit<K, V, C> = unsafe extern "C" fn(*mut c_void, *const K, *const V, *mut C) -> c_long;

/// Let `visit` look at every element of `map`. `false` when it is too early to look again.
#[inline(always)]
fn sweep<K, V, C, const N: usize, const F: usize>(
    map: &HashMap<K, V, N, F>,
    now: u64,
    mut context: C,
    visit: Visit<K, V, C>,
) -> bool {
    if !may_sweep(now) {
        return false;
    }
    // SAFETY: the callback has the signature that the helper asks for, of that map's key and value;
    // `context` outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const *map).cast_mut().cast(),
            visit as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
    true
}

/// Add an empty value for `key`. `false` when there is no room, or when there is one already.
/// `empty` is the map's scratch value: words as many as the value has, never written.
#[inline(always)]
pub fn insert_empty<K, V, const N: usize, const F: usize, const WORDS: usize>(
    map: &HashMap<K, V, N, F>,
    empty: &PerCpuArray<[u64; WORDS], 1>,
    key: &K,
) -> bool {
    const { assert!(WORDS * 8 == size_of::<V>()) };
    let Some(empty) = empty.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: of the value's size and alignment, and all zero, which is an empty one for all maps.
    unsafe { map.insert(key, &*empty.cast::<V>(), BPF_NOEXIST.into()).is_ok() }
}

/// An empty flow with a new generation, in [`NEW_FLOW`]: to be filled in for [`insert_flow`].
#[inline(always)]
pub fn new_flow() -> Option<&'static mut Flow> {
    let new = NEW_FLOW.get_ptr_mut(0)?;
    // SAFETY: this CPU's scratch value, of a flow's size and alignment; all zero is a flow.
    let flow = unsafe {
        *new = [0; size_of::<Flow>() / 8];
        &mut *new.cast::<Flow>()
    };
    // SAFETY: no arguments, no effects.
    flow.generation = unsafe { bpf_get_prandom_u32() };
    Some(flow)
}

/// Insert the flow that was put together in [`NEW_FLOW`], making room for it if there is none.
#[inline(always)]
pub fn insert_flow(scene: &Scene) -> bool {
    let (key, now) = (scene.key, scene.now);
    let Some(new) = NEW_FLOW.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's scratch value, of a flow's size and alignment.
    let flow = unsafe { &*new.cast::<Flow>() };
    let inserted = FLOWS.insert(key, flow, BPF_ANY.into()).is_ok()
        || (reclaim_flows(now) && FLOWS.insert(key, flow, BPF_NOEXIST.into()).is_ok());
    if !inserted {
        report::count(Counter::FlowsRefused);
        let client = SourceKey { address: key.client, scope: scene.policy.scope };
        report::source_event(EventKind::TableFull, &client, now, 0, 0);
    }
    inserted
}

/// The server has answered: from here on the connection in [`NEW_FLOW`] is followed, if there is
/// room. [`Verdict::Drop`] refuses it.
#[inline(always)]
pub fn admit(scene: &Scene) -> Verdict {
    requests::forget();
    let _ = STRANGERS.remove(scene.key);
    if !insert_flow(scene) {
        let closed = scene.policy.flags & FLOWS_FAIL_CLOSED != 0 && scene.enforces();
        return if closed { Verdict::Drop } else { Verdict::Pass };
    }
    report::count(Counter::FlowsOpened);
    report::flow_event(EventKind::FlowOpened, scene.key, scene.now, 0);
    Verdict::Pass
}

/// Look for room in the flow table. `false` when it is too early to look again.
#[inline(always)]
pub fn reclaim_flows(now: u64) -> bool {
    sweep(&FLOWS, now, Sweep { now, window: 0 }, visit_flow)
}

unsafe extern "C" fn visit_flow(
    map: *mut c_void,
    key: *const FlowKey,
    flow: *const Flow,
    sweep: *mut Sweep,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    unsafe {
        let silent = (*sweep).now.saturating_sub((*flow).last_ns);
        if (*flow).is_over(silent) {
            bpf_map_delete_elem(map, key.cast_mut().cast());
            report::count(Counter::FlowsReclaimed);
        }
    }
    0
}

/// Look for room in the source table. `false` when it is too early to look again.
#[inline(always)]
pub fn reclaim_sources(now: u64, window_ms: u32) -> bool {
    let window = window_ms as u64 * 2_000_000;
    let window = if window < IDLE_SOURCE { window } else { IDLE_SOURCE };
    sweep(&SOURCES, now, Sweep { now, window }, visit_source)
}

unsafe extern "C" fn visit_source(
    map: *mut c_void,
    key: *const SourceKey,
    source: *const Source,
    sweep: *mut Sweep,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    unsafe {
        let idle = (*sweep).now.saturating_sub((*source).last_ping) > (*sweep).window;
        if idle && (*source).throttled_until <= (*sweep).now {
            bpf_map_delete_elem(map, key.cast_mut().cast());
            report::count(Counter::SourcesReclaimed);
        }
    }
    0
}

/// What the sweep of the table of floods works on.
struct FloodSweep {
    now_ms: u32,
    window_ms: u32,
}

/// Look for room in the table of floods. `false` when it is too early to look again.
#[inline(always)]
pub fn reclaim_floods(now: u64, window_ms: u32) -> bool {
    sweep(&FLOODS, now, FloodSweep { now_ms: millis(now), window_ms }, visit_flood)
}

unsafe extern "C" fn visit_flood(
    map: *mut c_void,
    key: *const FloodKey,
    flood: *const Flood,
    sweep: *mut FloodSweep,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    unsafe {
        if (*flood).window.is_over((*sweep).now_ms, (*sweep).window_ms) {
            bpf_map_delete_elem(map, key.cast_mut().cast());
            report::count(Counter::SourcesReclaimed);
        }
    }
    0
}
