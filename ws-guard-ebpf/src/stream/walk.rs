//! Walks driven by `bpf_loop`: the verifier checks one step, for any number of them.

use core::ffi::{c_long, c_void};

use aya_ebpf::{btf_maps::PerCpuArray, helpers::bpf_loop, macros::btf_map};
use ws_guard_common::{
    flood::Counts,
    flow::Rewindable,
    frame::{Header, Violation},
    handshake::HeadScanner,
    maps::Policy,
    record::Record,
    search::{self, Search},
    tracker::{Step, Tracker, Walk},
};

use crate::{packet::Packet, stream::trail};

/// Maximum of steps in a walk.
/// A step covers at least two bytes, the shortest header, except for the two headers that a segment
/// can split, of ten bytes each, at one byte a step. A packet is shorter than 64 KiB, so that none
/// reaches the bound.
pub const MAX_STEPS: u32 = 32_800;

/// State that changes in a loop.
///
/// Not on the stack: there the verifier would follow every value of a counter, without end.
#[repr(C)]
pub struct State {
    pub walk: Walk,
    /// The flow's tracker when the walk began.
    pub start: Tracker,
    /// For a head: its scanner, and the offset of its next byte.
    pub head: HeadScanner,
    pub at: u32,
    /// Window scale in the TCP options, encoded as in [`ws_guard_common::pace::scale`].
    pub scale: u32,
    /// Result of a request's latest byte.
    pub read: u32,
    /// Number of further bytes of it to be read one by one.
    pub patience: u32,
    /// For midstream pickup.
    pub search: Search,
    /// The flow's `ping_ns` after the commit.
    pub asked_ns: u64,
    /// Number of pings passed so far.
    pub passed: u32,
    /// Bytes rewritten at even and at odd offsets of the segment.
    pub even: u32,
    pub odd: u32,
    step: u32,
    /// Unseen pings that the pongs in the server's segment reveal.
    pub unseen: u32,
    /// Number of a source's connections found.
    pub found: u32,
    /// New frames by class, if classes have limits...
    pub classes: Counts,
    /// ...and the longest payload of a tiny one.
    pub tiny_bytes: u32,
    /// Shortest and longest of the small records.
    pub record_min: u16,
    pub record_max: u16,
    /// Trail entered by this CPU: its number plus 1, or 0.
    pub trail: u32,
    /// Number of its next trace, room for traces, and traces left by the current walk.
    pub next_trace: u32,
    pub room: u32,
    pub traces: u32,
    /// Not 0: the walk is a dry run, and leaves no traces.
    pub looks: u32,
    /// Checkpoint for the walk of a retransmission, counted from the oldest...
    pub checkpoint: u32,
    /// ...and the tracker there.
    pub from: Tracker,
    /// Not 0: the flow was rewound for this segment...
    pub rewound: u32,
    /// ...and was this before.
    pub before: Rewindable,
    /// Copy of out-of-order segments entered by this CPU: its number plus 1, or 0.
    pub held: u32,
    /// The walk reaches the copy, and may pass and fill the gap...
    pub reached: u32,
    /// ...with all its pings, which are charged already.
    pub whole: u32,
    /// Violations by kind that this CPU had counted before the segment.
    pub violations: [u64; Violation::COUNT],
    /// The next segment in the copy.
    pub cut: u32,
    /// Walk through the copy, and the tracker when it began.
    pub held_walk: Walk,
    pub held_start: Tracker,
    /// Result of its last step, a [`Step`].
    pub held_step: u32,
    /// Position of copying or comparing: in the segment, in the copy, and the bytes left.
    pub held_from: u32,
    pub held_to: u32,
    pub held_left: u32,
}

#[btf_map]
static STATE: PerCpuArray<State, 1> = PerCpuArray::new();

/// This CPU's state, ready for a new packet.
#[inline(always)]
pub fn state() -> Option<&'static mut State> {
    // SAFETY: the element is this CPU's alone, lives as long as the map, and is taken once a packet.
    let state = unsafe { &mut *STATE.get_ptr_mut(0)? };
    state.even = 0;
    state.odd = 0;
    state.passed = 0;
    state.reached = 0;
    state.whole = 0;
    state.classes = Counts::default();
    Some(state)
}

/// This CPU's state, as the same packet left it.
#[inline(always)]
pub fn resume() -> Option<&'static mut State> {
    // SAFETY: as in `state`; its previous user has returned.
    STATE.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}

/// Set the checkpoint for the walk of a retransmission.
/// Not an argument: the verifier would check the whole function once for each.
#[inline(always)]
pub fn from_checkpoint(checkpoint: u8) {
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: this CPU's element.
        unsafe { (*state).checkpoint = checkpoint.into() };
    }
}

/// Note a rewritten byte, `offset` bytes behind the start of the TCP header.
#[inline(always)]
pub fn rewritten(offset: u32) {
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: this CPU's element; plain additions.
        unsafe {
            (*state).odd += offset & 1;
            (*state).even += !offset & 1;
        }
    }
}

/// Count a new frame by its class.
#[inline(always)]
pub fn count_class(header: &Header) {
    ws_guard_class(u32::from(header.first), header.payload_len);
}

/// [`count_class`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_class(first: u32, payload_len: u64) -> u32 {
    let header = Header { first: first as u8, second: 0, payload_len };
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: this CPU's element; the walk at hand uses other fields of it.
        unsafe {
            let tiny_bytes = (*state).tiny_bytes;
            let classes = &raw mut (*state).classes;
            (*classes).add(&header, tiny_bytes);
        }
    }
    0
}

/// Count a new TLS record by its class.
#[inline(always)]
pub fn count_record(record: Record) {
    ws_guard_record(record.kind.into(), record.length.into());
}

/// [`count_record`], as a global function: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_record(kind: u32, length: u32) -> u32 {
    let record = Record { kind: kind as u8, major: 0, length: length as u16 };
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: this CPU's element; the walk at hand uses other fields of it.
        unsafe {
            let (shortest, longest) = ((*state).record_min, (*state).record_max);
            let classes = &raw mut (*state).classes;
            (*classes).add_record(&record, shortest, longest);
        }
    }
    0
}

/// Walk through a payload; the context of the loop's callback.
pub struct Walker<P> {
    pub state: &'static mut State,
    pub packet: P,
}

impl State {
    /// Set the sizes of tiny frames and small records.
    #[inline(always)]
    pub fn small_as(&mut self, policy: &Policy) {
        self.tiny_bytes = policy.tiny_bytes;
        (self.record_min, self.record_max) = (policy.record_min, policy.record_max);
    }
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
