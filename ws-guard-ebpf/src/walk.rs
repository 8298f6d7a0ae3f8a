//! Driving a walk with `bpf_loop`: the verifier checks one step, however many there are.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::tracker::{Step, Walk};

use crate::packet::Packet;

/// Steps a walk may take. A step covers at least two bytes (the shortest header) but for one cut at
/// each end, and a packet has less than 64 KiB: no packet that the kernel can hold reaches it.
pub const MAX_STEPS: u32 = 32_800;

/// A walk and the payload that it goes through; what the loop's callback works on.
pub struct Walker<P> {
    pub walk: Walk,
    pub packet: P,
    step: Step,
    /// How many of the new pings keep to the connection's share.
    pub share: u32,
    /// How many of them are let pass so far.
    pub passed: u32,
}

impl<P: Packet> Walker<P> {
    #[inline(always)]
    pub fn new(walk: Walk, packet: P) -> Self {
        Self { walk, packet, step: Step::More, share: 0, passed: 0 }
    }

    /// Walk to the end of the segment, or to the first ping without a budget.
    ///
    /// [`Step::More`] when the bound was reached: the segment must not pass half-walked.
    #[inline(always)]
    pub fn run(&mut self) -> Step {
        // Most segments have one header: that one goes without a call.
        self.step = self.walk.step(&mut self.packet);
        if !matches!(self.step, Step::More) {
            return self.step;
        }
        if self.walk.at() >= self.packet.bytes() {
            return Step::Done;
        }
        self.run_on()
    }

    /// The same without the first step in line: for what is rare.
    #[inline(always)]
    pub fn run_on(&mut self) -> Step {
        let turn: unsafe extern "C" fn(u32, *mut Self) -> c_long = turn::<P>;
        // SAFETY: the callback gets `self` back, which outlives the loop.
        unsafe {
            bpf_loop(MAX_STEPS, turn as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
        self.step
    }
}

/// One step; 1 ends the loop.
unsafe extern "C" fn turn<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: `run_on` passed it, and nobody else uses it during the loop.
    let walker = unsafe { &mut *walker };
    walker.step = walker.walk.step(&mut walker.packet);
    !matches!(walker.step, Step::More) as c_long
}
