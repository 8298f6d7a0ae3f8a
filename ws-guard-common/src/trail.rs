//! The trail: where each frame that the server has not acknowledged begins.
//!
//! What a sender sends again it may cut in any way: its path has become narrower, or what was put
//! together on the way to the guard is cut apart behind it. Such a segment begins and ends anywhere.
//! It may pass if all headers in it are those that came first, at the same places; whatever mixture
//! of old and new bytes the server takes then has the same frames. Checkpoints know where the
//! stream stood between segments ([`crate::checkpoint`]); this is what knows it everywhere between.
//!
//! A trail is a ring of [`Trace`]s. The flow says which of them count, so that what a walk left that
//! was never committed is nothing.

use crate::{
    checkpoint::{CHECKPOINTS, REPLACES, UNPROVEN},
    flow::Flow,
    frame::{self, MAX_HEADER},
    maps::FlowKey,
    record,
    seq::before,
    tracker::{RECORDS_BIT, Tracker, Walk},
};

/// Headers that one flow can have unacknowledged, a power of two. One segment of the largest size with
/// messages of ten bytes has so many; a sender of smaller ones is slowed down.
pub const TRACES: u32 = 1 << TRACES_BITS;
const TRACES_BITS: u32 = 12;
/// A segment that is no longer than this is not cut on its way: with one header, it needs no trace.
pub const SHORT: u32 = 256;
/// Flows that can have a trail at once, a power of two.
pub const TRAILS: u32 = 256;
/// A trail of whose flow the server acknowledges nothing for so long makes room for another's,
/// nanoseconds.
pub const IDLE_NS: u64 = 60_000_000_000;

/// Where a header begins, and where the stream stood there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trace {
    /// Sequence number of the header's first byte.
    pub seq: u32,
    /// [`Tracker::mark`] there.
    pub mark: u32,
    /// The header's first two bytes; of a TLS record, its type and first version byte.
    pub first: u8,
    pub second: u8,
    /// [`Tracker::flags`] there.
    pub flags: u8,
    pub _pad: u8,
}

impl Trace {
    /// Of a header in whose first two bytes is `word`, before which the stream stood at `tracker`.
    #[inline(always)]
    pub const fn new(tracker: &Tracker, first: u8, second: u8) -> Trace {
        let Tracker { mark, next, flags, .. } = *tracker;
        Trace { seq: next, mark, first, second, flags, _pad: 0 }
    }

    /// What is not a place or a mark, in a word.
    #[inline(always)]
    pub const fn word(&self) -> u32 {
        (self.flags as u32) << 16 | (self.first as u32) << 8 | self.second as u32
    }

    /// The other way.
    #[inline(always)]
    pub const fn of(seq: u32, mark: u32, word: u32) -> Trace {
        let (flags, first, second) = ((word >> 16) as u8, (word >> 8) as u8, word as u8);
        Trace { seq, mark, first, second, flags, _pad: 0 }
    }

    /// Bytes of the header, a masking key not counted.
    #[inline(always)]
    const fn header(&self) -> u32 {
        if self.flags >> RECORDS_BIT & 1 != 0 {
            record::HEADER as u32
        } else {
            frame::header_len(self.second) as u32
        }
    }

    /// Byte `i` of the header, of `header` bytes, where the next one begins at `next`: the length says
    /// which that is.
    #[inline(always)]
    const fn byte(&self, i: u32, header: u32, next: u32) -> u8 {
        let is_frame = (self.flags >> RECORDS_BIT & 1 ^ 1) as u32;
        let key = is_frame & self.second as u32 >> 7;
        let length = next.wrapping_sub(self.seq).wrapping_sub(header + 4 * key);
        // From the last byte on, in network byte order; a frame of 2^32 bytes is never all here.
        let behind = header.wrapping_sub(i).wrapping_sub(1) & 7;
        match i {
            0 => self.first,
            1 => self.second,
            _ => ((length as u64) >> (8 * behind)) as u8,
        }
    }
}

/// The trail of one flow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Trail {
    /// 1 while a CPU is at it.
    pub busy: u32,
    /// What the server had acknowledged of the flow's bytes at that time.
    pub acked: u32,
    /// Whose it is, [`crate::held::owner`]; 0 for nobody's.
    pub owner: u64,
    /// When the server last acknowledged something, nanoseconds of CLOCK_MONOTONIC (coarse).
    pub last_ns: u64,
    /// The connection that it is of.
    pub key: FlowKey,
    pub _pad: u32,
    pub traces: [Trace; TRACES as usize],
}

const _: () = assert!(size_of::<Trail>() == 64 + 12 * TRACES as usize);

impl Default for Trail {
    /// Nobody's.
    fn default() -> Trail {
        let traces = [Trace::default(); TRACES as usize];
        let key = FlowKey::default();
        Trail { busy: 0, acked: 0, owner: 0, last_ns: 0, key, _pad: 0, traces }
    }
}

/// The place of an [owner](crate::held::owner)'s trail, which it shares with others.
#[inline(always)]
pub const fn slot(owner: u64) -> u32 {
    (owner ^ owner >> 32).wrapping_mul(0x9E37_79B1) as u32 >> (32 - TRAILS.trailing_zeros())
}

/// The second byte of a record's version says nothing and is not kept.
const MINOR: u32 = 2;

impl Trail {
    /// Trace number `i` of the flow's life.
    #[inline(always)]
    pub fn trace(&self, i: u32) -> &Trace {
        &self.traces[(i & (TRACES - 1)) as usize]
    }

    /// Keep a trace under that number.
    #[inline(always)]
    pub fn put(&mut self, i: u32, trace: Trace) {
        self.traces[(i & (TRACES - 1)) as usize] = trace;
    }

    /// How many of the flow's `count` traces from number `first` on begin before `seq`.
    #[inline(always)]
    pub fn before(&self, first: u32, count: u32, seq: u32) -> u32 {
        let mut found = 0u32;
        let mut i = 0;
        // Without a branch, of which the kernel's verifier would follow both sides.
        while i <= TRACES_BITS {
            let step = TRACES >> i;
            let last = found.wrapping_add(step).wrapping_sub(1);
            let earlier = self.trace(first.wrapping_add(last)).seq.wrapping_sub(seq) >> 31;
            let counts = last.wrapping_sub(count) >> 31;
            found = found.wrapping_add(step * (earlier & counts));
            i += 1;
        }
        found
    }

    /// Where the flow's stream stood at `seq`, a byte that the server has yet to acknowledge.
    #[inline(always)]
    pub fn stood_at(&self, flow: &Flow, seq: u32) -> Option<Tracker> {
        let (first, count) = (flow.first_trace(), flow.traces as u32);
        if flow.traces == 0 || before(seq, flow.traced_from) {
            return None;
        }
        let earlier = self.before(first, count, seq);
        let next = match earlier < count {
            true => *self.trace(first.wrapping_add(earlier)),
            false => Trace::new(&flow.client, 0, 0),
        };
        if earlier > 0 {
            let cut = self.trace(first.wrapping_add(earlier).wrapping_sub(1));
            let have = seq.wrapping_sub(cut.seq);
            if have < cut.header() {
                return Some(cut_at(cut, have, next.seq));
            }
        }
        if earlier < count {
            return Some(Tracker { mark: next.mark, ..Tracker::new(next.seq, next.flags) });
        }
        Some(shortened(&flow.client, seq))
    }

    /// A walk that came to `tracker` stands where the flow's stream stood, by the same way.
    #[inline(always)]
    pub fn knows(&self, flow: &Flow, tracker: &Tracker) -> bool {
        let (first, count) = (flow.first_trace(), flow.traces as u32);
        let earlier = self.before(first, count, tracker.next);
        if earlier >= count || tracker.beyond != 0 {
            return false;
        }
        let trace = self.trace(first.wrapping_add(earlier));
        let next = match earlier + 1 < count {
            true => self.trace(first.wrapping_add(earlier).wrapping_add(1)).seq,
            false => flow.client.next,
        };
        // Without a branch, as above.
        let header = trace.header();
        let flags = (trace.flags ^ tracker.flags) as u32;
        let mut apart = (trace.seq ^ tracker.next) | (trace.mark ^ tracker.mark) | flags;
        let mut i = 0u32;
        while i < MAX_HEADER as u32 {
            let carried = i.wrapping_sub(tracker.carried as u32) >> 31;
            let says_nothing = (i == MINOR) as u32 & (trace.flags >> RECORDS_BIT) as u32;
            let byte = match tracker.carry.get(i as usize) {
                Some(byte) => *byte,
                None => 0,
            };
            let differs = (byte ^ trace.byte(i, header, next)) as u32;
            apart |= differs * (carried & (says_nothing ^ 1));
            i += 1;
        }
        apart == 0
    }
}

/// Where the stream stood behind the first `have` bytes of a header that the next one follows at `next`.
#[inline(always)]
fn cut_at(trace: &Trace, have: u32, next: u32) -> Tracker {
    let mut tracker = Tracker::new(trace.seq, trace.flags);
    tracker.mark = trace.mark;
    tracker.carried = have as u8;
    let header = trace.header();
    let mut i = 0u32;
    while i < MAX_HEADER as u32 {
        let kept = ((i.wrapping_sub(have) >> 31) as u8).wrapping_neg();
        if let Some(byte) = tracker.carry.get_mut(i as usize) {
            *byte = trace.byte(i, header, next) & kept;
        }
        i += 1;
    }
    tracker
}

/// Where the stream stands, but with no more of a header that was cut than lies before `seq`.
#[inline(always)]
fn shortened(client: &Tracker, seq: u32) -> Tracker {
    let mut tracker = *client;
    let have = if before(client.next, seq) { seq.wrapping_sub(client.next) } else { 0 };
    let mut i = 0u32;
    while i < MAX_HEADER as u32 {
        let kept = ((i.wrapping_sub(have) >> 31) as u8).wrapping_neg();
        if let Some(byte) = tracker.carry.get_mut(i as usize) {
            *byte &= kept;
        }
        i += 1;
    }
    tracker.carried = if have < client.carried as u32 { have as u8 } else { client.carried };
    tracker
}

impl Flow {
    /// Number of the oldest trace that counts.
    #[inline(always)]
    pub const fn first_trace(&self) -> u32 {
        self.next_trace.wrapping_sub(self.traces as u32)
    }

    /// How many more headers the trail has room for.
    #[inline(always)]
    pub const fn trail_room(&self) -> u32 {
        TRACES - self.traces as u32
    }

    /// What was traced counts no more: the stream is traced from where it stands.
    #[inline(always)]
    pub fn trace_anew(&mut self) {
        self.traces = 0;
        self.traced_from = self.client.next;
    }

    /// A walk that is committed left so many traces. Where there was no room for them, all is lost.
    #[inline(always)]
    pub fn take_traces(&mut self, count: u32) {
        let fits = count <= self.trail_room();
        self.traces = if fits { self.traces + count as u16 } else { 0 };
        self.next_trace = self.next_trace.wrapping_add(count);
        self.traced_from = if fits { self.traced_from } else { self.client.next };
    }

    /// A segment of `len` bytes with one header, which was committed, leaves a trace.
    #[inline(always)]
    pub const fn needs_trace(&self, len: u32) -> bool {
        self.trail != 0 || self.is_crowded() || len > SHORT
    }

    /// The one trace of such a segment, of a header at `seq`.
    #[inline(always)]
    pub fn take_one(&mut self, seq: u32) {
        self.take_traces(1);
        self.traced_from = if self.traces == 1 { seq } else { self.traced_from };
    }

    /// The server has acknowledged `count` headers, of whose latest it may not have all; that one
    /// begins at `seq`.
    #[inline(always)]
    pub fn drop_traces(&mut self, count: u32, seq: u32) {
        if count > 1 && count <= self.traces as u32 {
            self.traces -= (count - 1) as u16;
            self.traced_from = seq;
        }
    }

    /// What was let through is what was followed: no other bytes have taken the place of any, and none
    /// may have, unproven.
    #[inline(always)]
    pub fn is_proven(&self) -> bool {
        let mut doubts = 0;
        let mut i = 0u32;
        while i < CHECKPOINTS as u32 {
            let at = (self.oldest as u32).wrapping_add(i) & (CHECKPOINTS as u32 - 1);
            let counts = i.wrapping_sub(self.kept as u32) >> 31;
            doubts |= self.checkpoints[at as usize].flags * counts;
            i += 1;
        }
        doubts & (UNPROVEN | REPLACES) == 0
    }

    /// The walk comes to where the stream stands now, or goes on from there.
    #[inline(always)]
    pub fn is_reached(&self, walk: &Walk) -> bool {
        walk.joined || walk.tracker == self.client
    }
}
