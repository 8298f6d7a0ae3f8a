//! The maps. Names and layouts are those of `ws_guard_common::maps`; the sizes here are defaults
//! that the daemon overrides at load.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::{bpf_spin_lock, bpf_spin_unlock},
    macros::btf_map,
};
use ws_guard_common::{
    flow::Flow,
    maps::{Address, Counters, Event, FlowKey, Pending, Policy, Ports, Rule, Shared},
    source::Source,
};

#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 32768> = HashMap::new();

#[btf_map]
pub static PENDING: LruHashMap<FlowKey, Pending, 4096> = LruHashMap::new();

#[btf_map]
pub static SOURCES: HashMap<Address, Source, 32768> = HashMap::new();

#[btf_map]
pub static RULES: LpmTrie<Address, Rule, 4096> = LpmTrie::new();

#[btf_map]
pub static POLICY: Array<Policy, 2> = Array::new();

#[btf_map]
pub static ACTIVE: Array<u32, 1> = Array::new();

#[btf_map]
pub static PORTS: Array<Ports, 1> = Array::new();

#[btf_map]
pub static SHARED: Array<Shared, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, 262144> = RingBuf::new();

/// A new entry is put together here: it is too large for the stack. Words, not the type itself,
/// because a per-CPU map may hold no lock.
#[btf_map]
pub static NEW_FLOW: PerCpuArray<[u64; size_of::<Flow>() / 8], 1> = PerCpuArray::new();

#[btf_map]
pub static NEW_SOURCE: PerCpuArray<[u64; size_of::<Source>() / 8], 1> = PerCpuArray::new();

#[btf_map]
pub static NEW_PENDING: PerCpuArray<Pending, 1> = PerCpuArray::new();

/// The policy in force.
#[inline(always)]
pub fn policy() -> Option<&'static Policy> {
    let active = *ACTIVE.get(0)?;
    POLICY.get(active & 1)
}

/// The port, in network byte order, is protected.
#[inline(always)]
pub fn is_protected(port: u16) -> bool {
    let port = u16::from_be(port) as u32;
    let Some(ports) = PORTS.get(0) else {
        return false;
    };
    ports.0[(port >> 6 & 1023) as usize] >> (port & 63) & 1 != 0
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
