//! This CPU's state while it handles a packet.
//!
//! Not on the stack: there the verifier would follow every value of a counter in a loop, without end, and
//! 512 bytes are not enough.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use ws_guard_common::{
    chunks::Chunks,
    flood::Counts,
    frame::{Header, Violation, opcode},
    handshake::HeadScanner,
    ledger::RING,
    maps::{Digest, Policy},
    out_of_order::Range,
    record::Record,
    search::Search,
    tracker::{SPRINT, Seen, Tracker, Walk},
    trail::Trace,
};

/// State that changes in a loop, or that one program part leaves for another.
#[repr(C)]
pub struct State {
    pub walk: Walk,
    /// The flow's tracker when the walk began...
    pub known: Tracker,
    /// ...and the one behind which all bytes are new.
    pub start: Tracker,
    /// Result of the walk's last step.
    pub step: u32,
    /// Unseen pings that the pongs in the server's segment reveal.
    pub unseen: u32,
    /// Number of a source's connections found.
    pub found: u32,
    pub rewrite: Rewrite,
    pub counted: Counted,
    pub traces: Traces,
    pub rewind: Rewind,
    pub gap: Gap,
    pub reading: Reading,
    /// For midstream pickup.
    pub search: Search,
    /// Violations by kind that this CPU had counted before the segment.
    pub violations: [u64; Violation::COUNT],
}

/// Numbers of bytes rewritten at even and at odd offsets of the segment.
#[repr(C)]
pub struct Rewrite {
    pub even: u32,
    pub odd: u32,
}

/// New frames and records of a walk.
#[repr(C)]
pub struct Counted {
    /// Number of pings that pass.
    pub passed: u32,
    pub beats: Beats,
    /// Frames by class, if classes have limits...
    pub classes: Counts,
    /// ...and the longest payload of a tiny one.
    pub tiny_bytes: u32,
    /// Shortest and longest of the small records.
    pub record_min: u16,
    pub record_max: u16,
}

/// Traces of the current walk.
#[repr(C)]
pub struct Traces {
    /// Trail that this CPU has entered: its number plus 1, or 0 if the flow has its traces itself.
    pub trail: u32,
    /// Number of the next trace, room for traces, and traces left by the current walk.
    pub next: u32,
    pub room: u32,
    pub left: u32,
    /// Not 0: the flow needs a trail, and has none.
    pub many: u32,
    /// Not 0: the walk is a dry run, and leaves no traces.
    pub looks: u32,
    /// Those of a flow without a trail; what exceeds them is in the last place.
    pub kept: [Trace; RING],
}

/// Walk of a retransmission.
#[repr(C)]
pub struct Rewind {
    /// Tracker at its first unacknowledged byte.
    pub from: Tracker,
    /// Not 0: it has the same bytes as the header that was split at the cursor.
    pub agrees: u32,
    /// Not 0: its bytes replace all unacknowledged ones...
    pub replaces: u32,
    /// ...of which the server is known to hold none...
    pub settled: u32,
    /// ...as long as the server has acknowledged no more, and nothing else has passed: [`Flow::last_ns`].
    pub acked: u32,
    pub last_ns: u64,
}

/// Copy of out-of-order segments that this CPU has entered.
#[repr(C)]
pub struct Gap {
    /// Its number plus 1, or 0.
    pub copy: u32,
    /// The walk reaches the copy, and may pass and fill the gap...
    pub reached: u32,
    /// ...with all its pings, which are charged already.
    pub whole: u32,
    /// The first range reached.
    pub first: u32,
    /// Range of the latest piece walked, the sequence number after that, and the
    /// [mesh](ws_guard_common::out_of_order::mesh) of the pieces.
    pub within: Range,
    pub at: u32,
    pub mesh: u32,
    /// Number of the next range to compare with.
    pub range: u32,
    /// Walk through the copy, and the tracker when it began.
    pub walk: Walk,
    pub start: Tracker,
    /// Result of its last step, a [`ws_guard_common::tracker::Step`].
    pub step: u32,
    /// Position of copying or comparing: in the packet's segment, its sequence number, and the bytes
    /// left.
    pub from: u32,
    pub to: u32,
    pub bytes: u32,
}

/// Position in a head, a preface or TCP options.
#[repr(C)]
pub struct Reading {
    pub head: HeadScanner,
    /// Offset of the next byte.
    pub at: u32,
    /// Window scale in the TCP options, encoded as in [`ws_guard_common::pace::scale`].
    pub scale: u32,
    /// [`stamp`](ws_guard_common::maps::stamp)s of the timestamp in them, and of the one that it echoes.
    pub stamp: u16,
    pub echoed: u16,
    /// Result of a request's latest byte.
    pub read: u32,
    /// Number of further bytes of it to be read one by one.
    pub patience: u32,
    /// Digest of a part of a request, and the offset of the part's end.
    pub digest: Digest,
    pub until: u32,
    /// Number of the part that comes next.
    pub piece: u32,
    /// Reader of a chunked body's framing.
    pub chunks: Chunks,
}

/// Payload offsets of new pings and pongs in a segment: the first and the latest of each.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Beats {
    pub first_ping: u32,
    pub ping: u32,
    pub first_pong: u32,
    pub pong: u32,
}

impl Beats {
    /// No offset.
    pub const NOWHERE: u32 = u32::MAX;
    pub const NONE: Beats = Beats {
        first_ping: Self::NOWHERE,
        ping: Self::NOWHERE,
        first_pong: Self::NOWHERE,
        pong: Self::NOWHERE,
    };

    /// Note those among the headers of a step, in a segment that begins at `base`.
    #[inline(always)]
    pub fn note(&mut self, seen: &Seen, base: u32) {
        let mut i = 0;
        while i < SPRINT {
            if let Some(seq) = seen.place_of(opcode::PING, i) {
                self.ping = seq.wrapping_sub(base);
                if self.first_ping == Self::NOWHERE {
                    self.first_ping = self.ping;
                }
            }
            if let Some(seq) = seen.place_of(opcode::PONG, i) {
                self.pong = seq.wrapping_sub(base);
                if self.first_pong == Self::NOWHERE {
                    self.first_pong = self.pong;
                }
            }
            i += 1;
        }
    }
}

#[btf_map]
static STATE: PerCpuArray<State, 1> = PerCpuArray::new();

/// This CPU's state, ready for a new packet.
#[inline(always)]
pub fn state() -> Option<&'static mut State> {
    // SAFETY: the element is this CPU's alone, lives as long as the map, and is taken once a packet.
    let state = unsafe { &mut *STATE.get_ptr_mut(0)? };
    (state.rewrite.even, state.rewrite.odd) = (0, 0);
    (state.counted.passed, state.counted.beats) = (0, Beats::NONE);
    (state.gap.reached, state.gap.whole) = (0, 0);
    state.counted.classes = Counts::default();
    Some(state)
}

/// This CPU's state, as the same packet left it.
#[inline(always)]
pub fn resume() -> Option<&'static mut State> {
    // SAFETY: as in `state`; its previous user has returned.
    STATE.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}

/// Note a rewritten byte, `offset` bytes behind the start of the TCP header.
#[inline(always)]
pub fn rewritten(offset: u32) {
    if let Some(state) = STATE.get_ptr_mut(0) {
        // SAFETY: this CPU's element; plain additions.
        unsafe {
            (*state).rewrite.odd += offset & 1;
            (*state).rewrite.even += !offset & 1;
        }
    }
}

impl State {
    /// Set the sizes of tiny frames and small records.
    #[inline(always)]
    pub fn small_as(&mut self, policy: &Policy) {
        self.counted.tiny_bytes = policy.tiny_bytes;
        (self.counted.record_min, self.counted.record_max) = (policy.record_min, policy.record_max);
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
            let tiny_bytes = (*state).counted.tiny_bytes;
            let classes = &raw mut (*state).counted.classes;
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
            let (shortest, longest) = ((*state).counted.record_min, (*state).counted.record_max);
            let classes = &raw mut (*state).counted.classes;
            (*classes).add_record(&record, shortest, longest);
        }
    }
    0
}
