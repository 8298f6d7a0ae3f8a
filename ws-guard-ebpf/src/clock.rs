//! The time of a packet, read once a tick.
//!
//! The kernel's coarse clock advances once a tick of its timer, and takes a call to read; the number of ticks
//! is a word in memory, which the kernel's compiler of programs reads in line. So each CPU keeps the
//! time at which it saw a tick first, until the next one.
//!
//! Such a time is behind the true one by less than a tick, like the coarse clock, and never ahead of it. Other
//! than there, two CPUs may be apart by as much: one time may be slightly before another that was
//! kept earlier ([`ws_guard_common::source::elapsed_ms`]).

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::btf_map,
};

/// A tick, and the first time in it.
#[repr(C)]
struct Tick {
    number: u64,
    ns: u64,
}

#[btf_map]
static TICK: PerCpuArray<Tick, 1> = PerCpuArray::new();

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no effects.
    let number = unsafe { bpf_jiffies64() };
    let Some(tick) = TICK.get_ptr_mut(0) else {
        // SAFETY: as above.
        return unsafe { bpf_ktime_get_ns() };
    };
    // SAFETY: this CPU's element.
    let tick = unsafe { &mut *tick };
    if tick.number != number {
        // SAFETY: as above.
        tick.ns = unsafe { bpf_ktime_get_ns() };
        tick.number = number;
    }
    tick.ns
}
