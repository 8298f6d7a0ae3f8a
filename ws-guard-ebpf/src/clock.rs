//! The coarse clock (CLOCK_MONOTONIC_COARSE), asked once a tick.
//!
//! It stands still between two ticks, but to ask it is a call that each packet would pay for. The number
//! of the tick is not: the verifier puts a single load in place of the call, on 64-bit machines.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};

/// What the clock showed in a tick.
#[repr(C)]
struct Shown {
    tick: u64,
    ns: u64,
}

#[btf_map]
static SHOWN: PerCpuArray<Shown, 1> = PerCpuArray::new();

/// Nanoseconds of the coarse clock; at most one tick late, where it was asked while the tick began.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: neither helper has arguments or effects; the element is this CPU's alone.
    unsafe {
        let tick = bpf_jiffies64();
        let Some(shown) = SHOWN.get_ptr_mut(0) else {
            return bpf_ktime_get_coarse_ns();
        };
        if (*shown).tick != tick {
            *shown = Shown { tick, ns: bpf_ktime_get_coarse_ns() };
        }
        (*shown).ns
    }
}
