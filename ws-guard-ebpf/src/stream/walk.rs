//! Walks driven by `bpf_loop`: the verifier checks one step, for any number of them.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_loop;
use ws_guard_common::{search, tracker::Step};

use crate::{cpu::State, packet::Packet, stream::trail};

/// Maximum of steps in a walk.
/// A step covers at least two bytes, the shortest header, except for the two headers that a segment
/// can split, of ten bytes each, at one byte a step. A packet is shorter than 64 KiB, so that none
/// reaches the bound.
pub const MAX_STEPS: u32 = 32_800;

/// Walk through a payload; the context of the loop's callback.
pub struct Walker<P> {
    pub state: &'static mut State,
    pub packet: P,
}

impl<P: Packet> Walker<P> {
    /// Walk to the end of the segment, or to the first ping without a budget.
    ///
    /// [`Step::More`] when the bound was reached: the segment must not pass half-walked.
    #[inline(always)]
    pub fn run(&mut self) -> Step {
        // Most segments have one header: that needs no loop.
        match one_step(self) {
            MORE if self.state.walk.at() < self.packet.bytes() => self.run_on(),
            MORE | DONE => Step::Done,
            ASK => Step::Ask,
            _ => Step::Unreadable,
        }
    }

    /// [`Self::run`] without the first step in line, for rare cases.
    #[inline(always)]
    pub fn run_on(&mut self) -> Step {
        let turn: unsafe extern "C" fn(u32, *mut Self) -> c_long = turn::<P>;
        // SAFETY: the callback gets `self` back, which outlives the loop.
        unsafe {
            bpf_loop(MAX_STEPS, turn as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
        match self.state.step {
            DONE => Step::Done,
            ASK => Step::Ask,
            MORE => Step::More,
            _ => Step::Unreadable,
        }
    }
}

impl<P: Packet> Walker<P> {
    /// Run the search in the state to its end.
    #[inline(always)]
    pub fn search(&mut self) {
        let turn: unsafe extern "C" fn(u32, *mut Self) -> c_long = search_turn::<P>;
        // SAFETY: the callback gets `self` back, which outlives the loop.
        unsafe {
            bpf_loop(search::MAX_STEPS, turn as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
    }
}

/// One header; 1 ends the loop.
unsafe extern "C" fn search_turn<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `search`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    walker.state.search.step(&walker.packet) as c_long
}

const MORE: u32 = Step::More as u32;
const DONE: u32 = Step::Done as u32;
const ASK: u32 = Step::Ask as u32;

/// One step, as a function: to the verifier it returns in as many states as it has results, not as
/// it has paths.
#[inline(never)]
fn one_step<P: Packet>(walker: &mut Walker<P>) -> u32 {
    let step = walker.state.walk.step(&mut walker.packet) as u32;
    if walker.state.walk.seen.count != 0 {
        trail::trace_seen(false);
    }
    step
}

/// One step; 1 ends the loop.
unsafe extern "C" fn turn<P: Packet>(_index: u32, walker: *mut Walker<P>) -> c_long {
    // SAFETY: passed by `run_on`, with no other user during the loop.
    let walker = unsafe { &mut *walker };
    let step = walker.state.walk.step(&mut walker.packet);
    walker.state.step = step as u32;
    if walker.state.walk.seen.count != 0 {
        trail::trace_seen(false);
    }
    !matches!(step, Step::More) as c_long
}
