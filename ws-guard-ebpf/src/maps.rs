//! BPF maps. Names and layouts are those of `ws_guard_common::maps`; the sizes here are defaults
//! that the daemon overrides at load.

use core::hint::black_box;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    helpers::{bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
};
use ws_guard_common::{
    flow::Flow,
    forwarded::names::HeaderNames,
    heartbeat::Heartbeats,
    maps::{
        Address, BEGINNINGS as MAX_BEGINNINGS, COARSE as MAX_COARSE, Counters, Event, FlowKey,
        HEARTBEATS as MAX_HEARTBEATS, MIDSTREAM as MAX_MIDSTREAM, Midstream, Network,
        PROVEN as MAX_PROVEN, Pending, Policy, Ports, Rule, SCOPES, SERVERS as MAX_SERVERS,
        SUSPECTS as MAX_SUSPECTS, SYNS as MAX_SYNS, Server, ServerKey, Shared, SourceKey, Suspect,
        Syn, Unopened,
    },
    out_of_order::{Held, SLOTS as HELD_SLOTS},
    pages::{ALL as ALL_PAGES, Page},
    source::Source,
    trail::{TRAILS as MAX_TRAILS, Trail},
    window::SLOTS,
};

/// Flag of the tables whose memory grows with their use.
const GROWING: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 32768, GROWING> = HashMap::new();

#[btf_map]
pub static PENDING: LruHashMap<FlowKey, Pending, 4096> = LruHashMap::new();

#[btf_map]
pub static PROVEN: LruHashMap<FlowKey, Pending, { MAX_PROVEN as usize }> = LruHashMap::new();

#[btf_map]
pub static TRAILS: Array<Trail, { MAX_TRAILS as usize }> = Array::new();

#[btf_map]
pub static HELD: Array<Held, { HELD_SLOTS as usize }> = Array::new();

#[btf_map]
pub static PAGES: Array<Page, { ALL_PAGES as usize }> = Array::new();

#[btf_map]
pub static MIDSTREAM: LruHashMap<FlowKey, Midstream, { MAX_MIDSTREAM as usize }> =
    LruHashMap::new();

#[btf_map]
pub static SOURCES: HashMap<SourceKey, Source, 32768, GROWING> = HashMap::new();

#[btf_map]
pub static COARSE: HashMap<SourceKey, Source, { MAX_COARSE as usize }> = HashMap::new();

#[btf_map]
pub static RULES: LpmTrie<Network, Rule, 4096> = LpmTrie::new();

#[btf_map]
pub static PROXIES: LpmTrie<Network, u32, 1024> = LpmTrie::new();

#[btf_map]
pub static HEADERS: Array<HeaderNames, 2> = Array::new();

#[btf_map]
pub static SUSPECTS: LruHashMap<Address, Suspect, { MAX_SUSPECTS as usize }> = LruHashMap::new();

#[btf_map]
pub static BEGINNINGS: LruHashMap<FlowKey, Unopened, { MAX_BEGINNINGS as usize }> =
    LruHashMap::new();

#[btf_map]
pub static SYNS: Array<Syn, { MAX_SYNS as usize }> = Array::new();

#[btf_map]
pub static POLICY: Array<Policy, { 2 * SCOPES as usize }> = Array::new();

#[btf_map]
pub static ACTIVE: Array<u32, 1> = Array::new();

#[btf_map]
pub static PORTS: Array<Ports, 2> = Array::new();

#[btf_map]
pub static SHARED: Array<Shared, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

#[btf_map]
pub static SERVERS: PerCpuHashMap<ServerKey, Server, { MAX_SERVERS as usize }> =
    PerCpuHashMap::new();

#[btf_map]
pub static HEARTBEATS: LruHashMap<FlowKey, Heartbeats, { MAX_HEARTBEATS as usize }> =
    LruHashMap::new();

#[btf_map]
pub static OTHERS: PerCpuArray<Server, 1> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, 262144> = RingBuf::new();

/// Scratch value for a new entry, which is too large for the stack.
/// Words, not the type itself, because a per-CPU map may hold no lock.
#[btf_map]
pub static NEW_FLOW: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

#[btf_map]
pub static NEW_SOURCE: PerCpuArray<[u64; size_of::<Source>() / 8], 1> = PerCpuArray::new();

#[btf_map]
pub static NEW_SERVER: PerCpuArray<[u64; size_of::<Server>() / 8], 1> = PerCpuArray::new();

/// Scratch value for regrouping a log of pings.
#[btf_map]
pub static STAMPS: PerCpuArray<[u32; SLOTS], 1> = PerCpuArray::new();

#[btf_map]
pub static NEW_PENDING: PerCpuArray<Pending, 1> = PerCpuArray::new();

/// The policy in force for a scope.
#[inline(always)]
pub fn policy_of_scope(scope: u32) -> Option<&'static Policy> {
    let active = *ACTIVE.get(0)? & 1;
    POLICY.get(active * SCOPES + (scope & (SCOPES - 1)))
}

/// The policy in force for a port, in network byte order; `None` where it is not protected.
#[inline(always)]
pub fn policy_of(port: u16) -> Option<&'static Policy> {
    let active = *ACTIVE.get(0)? & 1;
    // Verifiers before Linux 6.13 do not bound the result of a byte swap.
    let port = black_box(u16::from_be(port) as u32) & 0xFFFF;
    let entry = PORTS.get(active)?.0[port as usize];
    let scope = (entry & Ports::SCOPE) as u32;
    if scope == 0 {
        return None;
    }
    POLICY.get(active * SCOPES + ((scope - 1) & (SCOPES - 1)))
}

/// Change a flow under its lock.
///
/// `change` must be plain code: no helper may be called there and, before Linux 6.9, no function
/// either. A closure that is used in two programs' worth of callers has to be `#[inline(always)]`.
#[inline(always)]
pub fn locked<T>(flow: &mut Flow, change: impl FnOnce(&mut Flow) -> T) -> T {
    let lock = &raw mut flow.lock;
    // SAFETY: the flow stays mapped while the program runs, and the lock guards it.
    unsafe {
        bpf_spin_lock(lock.cast());
        let result = change(flow);
        bpf_spin_unlock(lock.cast());
        result
    }
}
