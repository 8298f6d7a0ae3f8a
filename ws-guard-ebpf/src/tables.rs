//! Room in full tables.
//!
//! Entries are reclaimed only under pressure, and only those that protect nothing any more: flows
//! that ended or were silent for long, sources with an empty window. Idling must not be a way to be
//! forgotten.

use core::{
    ffi::{c_long, c_void},
    hint::black_box,
};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{HashMap, PerCpuArray},
    helpers::{bpf_for_each_map_elem, bpf_get_prandom_u32, bpf_map_delete_elem},
};
use ws_guard_common::{
    flood::ClassWindow,
    flow::{Flow, state},
    maps::{Counter, EventKind, FLOWS_FAIL_CLOSED, FlowKey, Policy, SourceKey},
    source::{Source, millis},
};

use crate::{
    context::{Context, Verdict},
    cpu,
    maps::{BEGINNINGS, COARSE, FLOWS, MIDSTREAM, NEW_FLOW, SHARED, SOURCES, locked},
    opening::pending_upgrades,
    packet, report, servers,
};

/// Minimum interval between searches of a full table, ns: a search touches every entry.
const SWEEP_INTERVAL: u64 = 1_000_000_000;
/// Sources silent for this long, ns, have an empty window (which lasts an hour at most).
const IDLE_SOURCE: u64 = 3_600_000_000_000;

/// Context of a sweep's callback.
/// It holds nothing that changes from one element to the next: the verifier follows a callback
/// until it reaches a known state.
struct Sweep {
    now: u64,
    /// Sources that last pinged before `now - window` have an empty log.
    window: u64,
}

/// Check whether a sweep is due, and this call is to make it.
#[inline(always)]
fn may_sweep(now: u64) -> bool {
    let Some(shared) = SHARED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: an array element. Two CPUs may both find it due and sweep, without harm.
    unsafe {
        let due = now.saturating_sub((*shared).swept) >= SWEEP_INTERVAL;
        if due {
            (*shared).swept = now;
        }
        due
    }
}

/// Callback for each element of a map.
type Visit<K, V, C> = unsafe extern "C" fn(*mut c_void, *const K, *mut V, *mut C) -> c_long;

/// Call `visit` for every element of `map`. `false` when it is too early for another sweep.
#[inline(always)]
fn sweep<K, V, C, const N: usize, const F: usize>(
    map: &HashMap<K, V, N, F>,
    now: u64,
    mut context: C,
    visit: Visit<K, V, C>,
) -> bool {
    let may = may_sweep(now);
    if may {
        visit_all(map, &mut context, visit);
    }
    may
}

/// Call `visit` for every element of `map`.
#[inline(always)]
fn visit_all<K, V, C, const N: usize, const F: usize>(
    map: &HashMap<K, V, N, F>,
    context: &mut C,
    visit: Visit<K, V, C>,
) {
    // SAFETY: the callback has the signature that the helper asks for, of that map's key and value;
    // `context` outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const *map).cast_mut().cast(),
            visit as *mut c_void,
            core::ptr::from_mut(context).cast(),
            0,
        );
    }
}

/// Context of a visit to a source's connections.
/// Their number is in [`cpu::State::found`], because nothing may change here from one element to
/// the next.
struct Connections {
    key: SourceKey,
    now: u64,
    /// Generation of a connection to skip.
    except: u32,
    /// Time until which the connection is over the limit...
    over_until: u64,
    /// ...under this [`ws_guard_common::maps::Policy::generation`]...
    generation: u32,
    /// ...and is dropped for that, or paced.
    drops: u32,
}

impl Connections {
    #[inline(always)]
    fn of(key: &SourceKey, now: u64) -> Connections {
        Connections { key: *key, now, except: 0, over_until: 0, generation: 0, drops: 0 }
    }

    /// Check whether the flow is one of them.
    #[inline(always)]
    fn has(&self, flow: &Flow) -> bool {
        let (a, b) = (&flow.account.source, &self.key);
        let [p, q, r, s] = a.address.0;
        let [t, u, v, w] = b.address.0;
        let differ = (p ^ t) | (q ^ u) | (r ^ v) | (s ^ w) | (a.scope ^ b.scope);
        // Otherwise LLVM makes a branch of each, and the verifier follows all.
        black_box(differ) == 0
    }
}

/// Check that the flow's source has no other open connection within the limit.
/// `false` when it is too early for a sweep: it touches every flow.
#[inline(always)]
pub fn is_alone(flow: &Flow, now: u64) -> bool {
    if !may_sweep(now) {
        return false;
    }
    let mut connections = Connections::of(&flow.account.source, now);
    connections.except = flow.generation;
    count_with(&mut connections, visit_neighbour) == 0
}

/// Count connections with `visit`.
#[inline(always)]
fn count_with(connections: &mut Connections, visit: Visit<FlowKey, Flow, Connections>) -> u32 {
    if let Some(state) = cpu::resume() {
        state.found = 0;
    }
    visit_all(&FLOWS, connections, visit);
    cpu::resume().map_or(0, |state| state.found)
}

/// Count a connection.
#[inline(always)]
fn found() {
    if let Some(state) = cpu::resume() {
        state.found += 1;
    }
}

unsafe extern "C" fn visit_neighbour(
    _map: *mut c_void,
    _key: *const FlowKey,
    flow: *mut Flow,
    connections: *mut Connections,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    let (flow, connections) = unsafe { (&*flow, &*connections) };
    let behaves = flow.state != state::CLOSED && !flow.is_over_limit(connections.now);
    if behaves && flow.generation != connections.except && connections.has(flow) {
        found();
        return 1;
    }
    0
}

/// Release a source's connections on an operator's behalf: none is over the limit any more.
#[inline(never)]
pub fn release_flows(key: &SourceKey, now: u64) {
    visit_all(&FLOWS, &mut Connections::of(key, now), visit_released);
}

unsafe extern "C" fn visit_released(
    _map: *mut c_void,
    _key: *const FlowKey,
    flow: *mut Flow,
    connections: *mut Connections,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context; single words are written.
    let (flow, connections) = unsafe { (&mut *flow, &*connections) };
    if connections.has(flow) {
        flow.over_until = 0;
        flow.window.clear();
        flow.classes = ClassWindow::default();
    }
    0
}

/// Drop or pace a source's only connection for a window, after a terminator reported pings over the
/// limit. Of several connections it cannot be told which one sent them.
#[inline(never)]
pub fn treat_only_flow(key: &SourceKey, policy: &Policy, drops: bool, now: u64) {
    let mut connections = Connections::of(key, now);
    if count_with(&mut connections, visit_counted) == 1 {
        connections.over_until = now + policy.rate.window_ms as u64 * 1_000_000;
        connections.generation = policy.generation;
        connections.drops = drops as u32;
        visit_all(&FLOWS, &mut connections, visit_over);
    }
}

unsafe extern "C" fn visit_counted(
    _map: *mut c_void,
    _key: *const FlowKey,
    flow: *mut Flow,
    connections: *mut Connections,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    let (flow, connections) = unsafe { (&*flow, &*connections) };
    if flow.state != state::CLOSED && connections.has(flow) {
        found();
    }
    0
}

unsafe extern "C" fn visit_over(
    _map: *mut c_void,
    _key: *const FlowKey,
    flow: *mut Flow,
    connections: *mut Connections,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context; single words are written.
    let (flow, connections) = unsafe { (&mut *flow, &*connections) };
    if connections.has(flow) {
        let drops = connections.drops != 0;
        flow.exceeds(connections.now, connections.over_until);
        flow.treat(drops, !drops, connections.generation, millis(connections.now));
    }
    0
}

/// Add an empty value for `key`.
/// `false` when there is no room, or when there is one already. `empty` is the map's scratch value,
/// of the value's size and never written.
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

/// Empty flow with a new generation, in [`NEW_FLOW`], to be filled in for [`insert_flow`].
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

/// Insert the flow in [`NEW_FLOW`], making room for it if there is none.
#[inline(always)]
pub fn insert_flow(context: &Context) -> bool {
    let (key, now) = (context.key(), context.now);
    let Some(new) = NEW_FLOW.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's scratch value, of a flow's size and alignment.
    let flow = unsafe { &mut *new.cast::<Flow>() };
    if let Some(unopened) = BEGINNINGS.get_ptr(key) {
        // SAFETY: a map value; an LRU entry may be reused for another key meanwhile, and then no
        // SYN-ACK matches it.
        flow.begins_as(unsafe { (*unopened).began });
        // SAFETY: as above.
        flow.shut = unsafe { (*unopened).shut };
    }
    let flow = &*flow;
    let inserted = FLOWS.insert(key, flow, BPF_ANY.into()).is_ok()
        || (reclaim_flows(now) && FLOWS.insert(key, flow, BPF_NOEXIST.into()).is_ok());
    if !inserted {
        report::count(Counter::FlowsRefused);
        report::source_event(EventKind::TableFull, context.source(), Some(key), now, 0, 0);
    }
    ws_guard_take_over_ends();
    inserted
}

/// Take over the ends of the connection so far into its flow, those too that were noted while it was inserted.
///
/// A global function: the verifier checks it once, on its own.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_take_over_ends() -> u32 {
    let Some(key) = packet::key() else {
        return 0;
    };
    let (Some(unopened), Some(flow)) = (BEGINNINGS.get_ptr(key), FLOWS.get_ptr_mut(key)) else {
        return 0;
    };
    // SAFETY: a map value, as in `insert_flow`.
    let ends = unsafe { (*unopened).ends() };
    if ends != 0 {
        // SAFETY: a map value, which stays mapped while the program runs.
        locked(
            unsafe { &mut *flow },
            #[inline(always)]
            |flow| flow.hidden |= ends,
        );
    }
    0
}

/// Insert the flow in [`NEW_FLOW`] for an answered request, if there is room.
/// [`Verdict::Drop`] refuses the connection.
#[inline(always)]
pub fn admit(context: &Context) -> Verdict {
    pending_upgrades::forget();
    let _ = MIDSTREAM.remove(context.key());
    if !insert_flow(context) {
        let closed = context.policy.flags & FLOWS_FAIL_CLOSED != 0 && context.enforces();
        return if closed { Verdict::Drop } else { Verdict::Pass };
    }
    report::count(Counter::FlowsOpened);
    report::flow_event(EventKind::FlowOpened, context.key(), context.now, 0);
    Verdict::Pass
}

/// Make room in the flow table. `false` when it is too early for another sweep.
#[inline(always)]
pub fn reclaim_flows(now: u64) -> bool {
    sweep(&FLOWS, now, Sweep { now, window: 0 }, visit_flow)
}

unsafe extern "C" fn visit_flow(
    map: *mut c_void,
    key: *const FlowKey,
    flow: *mut Flow,
    sweep: *mut Sweep,
) -> c_long {
    // SAFETY: the helper passes a live element and our own context.
    unsafe {
        let silent = (*sweep).now.saturating_sub((*flow).last_ns);
        if (*flow).is_over(silent) {
            servers::silent(&*key, &*flow);
            bpf_map_delete_elem(map, key.cast_mut().cast());
            report::count(Counter::FlowsReclaimed);
        }
    }
    0
}

/// Make room in the source table. `false` when it is too early for another sweep.
#[inline(always)]
pub fn reclaim_sources(now: u64, window_ms: u32) -> bool {
    let window = window_ms as u64 * 2_000_000;
    let window = if window < IDLE_SOURCE { window } else { IDLE_SOURCE };
    let swept = sweep(&SOURCES, now, Sweep { now, window }, visit_source);
    if swept {
        visit_all(&COARSE, &mut Sweep { now, window }, visit_source);
    }
    swept
}

unsafe extern "C" fn visit_source(
    map: *mut c_void,
    key: *const SourceKey,
    source: *mut Source,
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
