//! Traces of headers, and trails: shared room for those of a flow that has many in flight.
//!
//! A sender may cut retransmissions differently: the path's MTU has shrunk, or segments merged
//! before the guard are cut again after it. Such a segment may begin and end anywhere. It may pass
//! if all headers in it are those received first, at the same positions; any mixture of old and new
//! bytes in the server then has the same frames ([`crate::ledger`]). Traces tell where the stream
//! stood at any position.
//!
//! A trail is a ring of [`Trace`]s. The flow records which of them are valid, so that traces of an
//! uncommitted walk do not count.

use crate::{
    flow::Flow,
    frame::{self, MAX_HEADER},
    ledger::RING,
    maps::FlowKey,
    record,
    seq::before,
    tracker::{
        FAR, FROM_CLIENT, RECORDS_BIT, RSV1_AGREED, STRIDE_BITS, TOP_SET, Tracker, mark_after,
    },
};

/// Maximum of traces of one flow, a power of two.
/// Enough for a segment of the largest size, of any messages of the common kind.
pub const TRACES: u32 = 1 << TRACES_BITS;
const TRACES_BITS: u32 = 12;
/// Maximum of headers of the common kind in one trace.
pub const TOGETHER: u32 = 3;
/// Maximum of flows with a trail, a power of two.
pub const TRAILS: u32 = 256;
/// Time without an acknowledgement by the server after which a trail may be taken for another flow,
/// ns.
pub const IDLE_NS: u64 = 60_000_000_000;

/// Position and tracker of a header; or up to [`TOGETHER`] headers of the common kind that follow
/// each other.
///
/// ```text
///  31 30 29  26 25 24 23   16 15       8 7        0
/// ┌─────┬────┬───┬───┬──────┬──────────┬──────────┐
/// │  0  │    │far│ 0 │flags │  second  │  first   │  one header
/// ├─────┼────┴───┼───┼──────┼──────────┴──────────┤
/// │  0  │ silent │ 1 │flags │ silent, lower bits  │  vague: its position alone
/// ├─────┼────────┴───┴┬─────┴───────┬─────────────┤
/// │count│    first    │   second    │    third    │  a number of FIRST and a length each
/// └─────┴─────────────┴─────────────┴─────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trace {
    /// Sequence number of the first header's first byte.
    pub seq: u32,
    /// [`Tracker::mark`] there.
    pub mark: u32,
    /// The header or headers.
    pub word: u32,
}

/// First bytes of the common kind, by number: with the third bit, a control frame.
const FIRST: u64 = u64::from_le_bytes([0xC1, 0x81, 0x82, 0xC2, 0x88, 0x89, 0x8A, 0]);
/// Bits of a header that is traced together with others.
const SHORT_BITS: u32 = 10;
/// Shift of their count.
const COUNT_AT: u32 = 3 * SHORT_BITS;
/// Shift of the bit of a trace whose headers, and others up to the next trace, are not kept.
const VAGUE_AT: u32 = 24;
/// Maximum of bytes that such a trace can tell, see [`Trace::silent`].
const LONGEST_VAGUE: u32 = (1 << 21) - 1;
/// Mask of all three.
const HEADERS: u32 = (1 << COUNT_AT) - 1;

impl Trace {
    /// Trace of a header with `word` as its first two bytes, at `tracker`.
    #[inline(always)]
    pub const fn new(tracker: &Tracker, word: u16) -> Trace {
        let Tracker { mark, next, flags, .. } = *tracker;
        Trace { seq: next, mark, word: Self::one(word, flags as u32) }
    }

    /// Word for one header with these first two bytes, and the stream's [flags](Tracker::flags)
    /// before it.
    #[inline(always)]
    pub const fn one(word: u16, flags: u32) -> u32 {
        flags << 16 | word.swap_bytes() as u32
    }

    /// Word for `count` headers of the common kind with these first two bytes each.
    #[inline(always)]
    pub const fn several(count: u32, words: [u16; TOGETHER as usize]) -> u32 {
        let [first, second, third] = words;
        let headers = short(first) << (2 * SHORT_BITS) | short(second) << SHORT_BITS | short(third);
        count << COUNT_AT | headers
    }

    /// Trace of its position alone, in a stream with these `flags`: of the headers from it on only
    /// the next trace's and those after it are known, and that none is between `end` and that one.
    #[inline(always)]
    pub const fn vague(&self, flags: u8, end: u32) -> Trace {
        let Trace { seq, mark, word } = self.head(flags);
        let silent = end.wrapping_sub(seq);
        // Without a branch, as below.
        let far =
            (((LONGEST_VAGUE as u64).wrapping_sub(silent as u64) >> 63) as u32).wrapping_neg();
        let silent = (silent & !far) | (LONGEST_VAGUE & far);
        let silent = silent & 0xFFFF | silent >> 16 << (VAGUE_AT + 1);
        Trace { seq, mark, word: word & 0xFF_0000 | 1 << VAGUE_AT | silent }
    }

    /// Number of bytes from a [vague](Trace::vague) trace to where no header begins before the next
    /// trace's; [`LONGEST_VAGUE`] where that is unknown.
    #[inline(always)]
    const fn silent(&self) -> u32 {
        self.word & 0xFFFF | self.word >> (VAGUE_AT + 1) << 16
    }

    /// Sequence number from which on no header begins before the next trace's.
    #[inline(always)]
    pub const fn until(&self, flags: u8) -> u32 {
        let (mut last, mut i) = (*self, 1);
        while i < TOGETHER {
            last = if last.goes_on() != 0 { last.rest() } else { last };
            i += 1;
        }
        let last = last.head(flags);
        let len = if last.is_vague() != 0 { last.silent() } else { last.header() };
        last.seq.wrapping_add(len)
    }

    /// 1 if it is [vague](Trace::vague), otherwise 0.
    #[inline(always)]
    const fn is_vague(&self) -> u32 {
        (self.word >> COUNT_AT).wrapping_sub(1) >> 31 & self.word >> VAGUE_AT
    }

    /// Strides of its frame that [`Tracker::beyond`] does not tell.
    #[inline(always)]
    const fn untold(&self) -> u64 {
        let far = ((self.word >> 16) / FAR) & 3;
        (far.saturating_sub(1) as u64) << 31
    }

    /// 1 if other headers follow in the same trace, otherwise 0.
    #[inline(always)]
    const fn goes_on(&self) -> u32 {
        self.word >> (COUNT_AT + 1)
    }

    /// Trace of its first header alone, in a stream with these `flags`.
    #[inline(always)]
    const fn head(&self, flags: u8) -> Trace {
        let flags = (flags & RSV1_AGREED | FROM_CLIENT) as u32;
        let (first, second) = self.common();
        let short = Self::one((first as u16) << 8 | second as u16, flags);
        let word = if self.word >> COUNT_AT == 0 { self.word } else { short };
        Trace { seq: self.seq, mark: self.mark, word }
    }

    /// First two bytes of its first header, of the common kind.
    #[inline(always)]
    const fn common(&self) -> (u8, u8) {
        let bits = self.word >> (2 * SHORT_BITS);
        let first = FIRST >> (8 * (bits >> 7 & 7));
        (first as u8, 0x80 | bits as u8 & frame::LEN7)
    }

    /// Trace of the headers after its first one, if [any](Trace::goes_on).
    #[inline(always)]
    const fn rest(&self) -> Trace {
        let (first, second) = self.common();
        let count = (self.word >> COUNT_AT).wrapping_sub(1);
        Trace {
            seq: self.seq.wrapping_add(frame::SHORTEST_MASKED + (second & frame::LEN7) as u32),
            mark: mark_after(self.mark, self.seq, first, second, 0),
            word: count << COUNT_AT | self.word << SHORT_BITS & HEADERS,
        }
    }

    /// [`Tracker::flags`] before its one header, and [`TOP_SET`].
    #[inline(always)]
    const fn flags(&self) -> u8 {
        (self.word >> 16) as u8
    }

    /// Length of its one header, without the masking key.
    #[inline(always)]
    const fn header(&self) -> u32 {
        if self.flags() >> RECORDS_BIT & 1 != 0 {
            record::HEADER as u32
        } else {
            frame::header_len((self.word >> 8) as u8) as u32
        }
    }

    /// Byte `i` of its one header, of `header` bytes, if the next one begins `distance` bytes
    /// further on, which gives the length.
    #[inline(always)]
    const fn byte(&self, i: u32, header: u32, distance: u64) -> u8 {
        let is_frame = (self.flags() >> RECORDS_BIT & 1 ^ 1) as u32;
        let key = is_frame & self.word >> 15;
        let length = distance.wrapping_sub((header + 4 * key) as u64);
        // From the last byte on, in network byte order.
        let behind = header.wrapping_sub(i).wrapping_sub(1) & 7;
        match i {
            0 => self.word as u8,
            1 => (self.word >> 8) as u8,
            2 => (length >> (8 * behind)) as u8 | self.flags() & TOP_SET,
            _ => (length >> (8 * behind)) as u8,
        }
    }
}

/// Encode a header of the common kind with these first two bytes.
#[inline(always)]
const fn short(word: u16) -> u32 {
    let (control, rsv1) = (word >> 11 & 1, word >> 14 & 1);
    let number = control << 2 | (word >> 8 & 3 ^ rsv1);
    (number << 7 | word & frame::LEN7 as u16) as u32
}

/// Headers around a position.
struct Place {
    /// The last header that begins before it, if `earlier` is not 0...
    last: Trace,
    earlier: u32,
    /// ...and the first one that does not, or the current tracker if that one is not `traced`.
    next: Trace,
    traced: bool,
    /// Number of the trace after the one with `next`.
    behind: u32,
}

/// Trail of one flow.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Trail {
    /// 1 while a CPU has entered it.
    pub busy: u32,
    /// The server's acknowledgement at `last_ns`.
    pub acked: u32,
    /// Its [`crate::out_of_order::owner`]; 0 for none.
    pub owner: u64,
    /// Time of the server's last new acknowledgement, ns of CLOCK_MONOTONIC (coarse).
    pub last_ns: u64,
    /// Its connection.
    pub key: FlowKey,
    pub _pad: u32,
    pub traces: [Trace; TRACES as usize],
}

const _: () = {
    assert!(size_of::<Trail>() == 64 + 12 * TRACES as usize);
    // For the largest segment, with the shortest frames.
    assert!(0xFFFF / frame::SHORTEST_MASKED / TOGETHER < TRACES);
};

impl Default for Trail {
    /// Without an owner.
    fn default() -> Trail {
        let traces = [Trace::default(); TRACES as usize];
        let key = FlowKey::default();
        Trail { busy: 0, acked: 0, owner: 0, last_ns: 0, key, _pad: 0, traces }
    }
}

/// Number of trails that a flow may take, a power of two: none is left for it only where others have
/// all of them.
pub const CHOICE: u32 = 4;

/// Trail number `i` of those that an [owner](crate::out_of_order::owner) may take, shared with others.
#[inline(always)]
pub const fn slot(owner: u64, i: u32) -> u32 {
    let hash = (owner ^ owner >> 32).wrapping_mul(0x9E37_79B1) as u32;
    hash >> (32 - TRAILS.trailing_zeros()) ^ i & (CHOICE - 1)
}

/// Index of the second byte of a record's version, which has no meaning and is not kept.
const MINOR: u32 = 2;

impl Trail {
    /// [`stood_at`] for a flow whose traces are here.
    #[inline(always)]
    pub fn stood_at(&self, flow: &Flow, seq: u32) -> Option<Tracker> {
        stood_at(self, flow, seq)
    }

    /// [`knows`] for a flow whose traces are here.
    #[inline(always)]
    pub fn knows(&self, flow: &Flow, tracker: &Tracker) -> bool {
        knows(self, flow, tracker)
    }
}

impl Traces for Trail {
    const BITS: u32 = TRACES_BITS;

    #[inline(always)]
    fn trace(&self, i: u32) -> &Trace {
        &self.traces[(i & (TRACES - 1)) as usize]
    }

    #[inline(always)]
    fn put(&mut self, i: u32, trace: Trace) {
        self.traces[(i & (TRACES - 1)) as usize] = trace;
    }
}

/// Ring of a flow's traces: in the flow, or in its trail.
pub trait Traces {
    /// Binary logarithm of their maximum number.
    const BITS: u32;

    /// Trace number `i`, modulo their maximum number.
    fn trace(&self, i: u32) -> &Trace;

    /// Keep a trace under that number.
    fn put(&mut self, i: u32, trace: Trace);

    /// Number of the flow's `count` traces, from number `first` on, that begin before `seq`.
    #[inline(always)]
    fn before(&self, first: u32, count: u32, seq: u32) -> u32 {
        let mut found = 0u32;
        let mut i = 0;
        // Without a branch: the kernel's verifier would follow both sides.
        while i <= Self::BITS {
            let step = (1u32 << Self::BITS) >> i;
            let last = found.wrapping_add(step).wrapping_sub(1);
            let earlier = self.trace(first.wrapping_add(last)).seq.wrapping_sub(seq) >> 31;
            let counts = last.wrapping_sub(count) >> 31;
            found = found.wrapping_add(step * (earlier & counts));
            i += 1;
        }
        found
    }
}

/// Check whether a trail is worth being searched for acknowledged traces: it is half full, and has at
/// least as many of them as a flow has room for; or the oldest is far behind.
#[inline(always)]
pub fn is_worth_pruning(trail: &Trail, flow: &Flow) -> bool {
    let first = flow.first_trace();
    let enough = trail.trace(first.wrapping_add(RING as u32)).seq;
    let crowded = flow.traces as u32 > TRACES / 2 && before(enough, flow.acked);
    crowded || flow.traces > 1 && is_aged(trail.trace(first).seq, flow.acked)
}

/// Distance of two traces in bytes from which on the older one has to go.
const AGE: u32 = 1 << 28;

/// Check whether a trace at `seq` is so far before `now` that it might soon be taken for one after it.
#[inline(always)]
pub const fn is_aged(seq: u32, now: u32) -> bool {
    let age = now.wrapping_sub(seq);
    age > AGE && age < 1 << 31
}

/// Make room for another trace under number `i`, the latest: the one before it says where headers begin
/// that are not kept, in a stream with these `flags`.
#[inline(always)]
pub fn give_way(traces: &mut impl Traces, i: u32, flags: u8) {
    let until = traces.trace(i).until(flags);
    let last = traces.trace(i.wrapping_sub(1)).vague(flags, until);
    traces.put(i.wrapping_sub(1), last);
}

/// The headers around `seq`.
#[inline(always)]
fn place(traces: &impl Traces, flow: &Flow, seq: u32) -> Place {
    let (first, count) = (flow.first_trace(), flow.traces as u32);
    let earlier = traces.before(first, count, seq);
    let mut last = *traces.trace(first.wrapping_add(earlier).wrapping_sub(1));
    let mut i = 1;
    while i < TOGETHER {
        let rest = last.rest();
        last = if last.goes_on() != 0 && before(rest.seq, seq) { rest } else { last };
        i += 1;
    }
    let within = earlier > 0 && last.goes_on() != 0;
    let next = match (within, earlier < count) {
        (true, _) => last.rest().head(flow.client.flags),
        (_, true) => traces.trace(first.wrapping_add(earlier)).head(flow.client.flags),
        _ => Trace::new(&flow.client, 0),
    };
    let last = last.head(flow.client.flags);
    let behind = earlier + !within as u32;
    Place { last, earlier, next, traced: within || earlier < count, behind }
}

/// Tracker of the flow's stream at `seq`, a byte that the server has yet to acknowledge.
#[inline(always)]
pub fn stood_at(traces: &impl Traces, flow: &Flow, seq: u32) -> Option<Tracker> {
    if before(seq, flow.traced_from) {
        return None;
    }
    let Place { last, earlier, next, traced, .. } = place(traces, flow, seq);
    let have = seq.wrapping_sub(last.seq);
    let silent = last.silent();
    let is_silent = have >= silent && silent != LONGEST_VAGUE || seq == next.seq;
    if earlier > 0 && last.is_vague() != 0 && !is_silent {
        return None;
    }
    if earlier > 0 && last.is_vague() == 0 && have < last.header() {
        let beyond = if traced { 0 } else { flow.client.beyond as u64 + last.untold() };
        return Some(cut_at(&last, have, distance(last.seq, next.seq, beyond)));
    }
    if traced {
        let flags = next.flags() & !TOP_SET;
        return Some(Tracker { mark: next.mark, ..Tracker::new(next.seq, flags) });
    }
    Some(shortened(&flow.client, seq))
}

/// Check whether `tracker`, reached by a walk, is one that the flow's stream had, after the
/// same headers.
#[inline(always)]
pub fn knows(traces: &impl Traces, flow: &Flow, tracker: &Tracker) -> bool {
    let Place { next: trace, traced, behind, .. } = place(traces, flow, tracker.next);
    if !traced || tracker.beyond != 0 {
        return false;
    }
    let (next, beyond) = match behind < flow.traces as u32 {
        true => (traces.trace(flow.first_trace().wrapping_add(behind)).seq, 0),
        false => (flow.client.next, flow.client.beyond as u64 + trace.untold()),
    };
    let distance = distance(trace.seq, next, beyond);
    // Without a branch, as above.
    let header = trace.header();
    let flags = ((trace.flags() ^ tracker.flags) & !TOP_SET) as u32;
    let mut apart = (trace.seq ^ tracker.next) | (trace.mark ^ tracker.mark) | flags;
    apart |= trace.is_vague() * tracker.carried as u32;
    let mut i = 0u32;
    while i < MAX_HEADER as u32 {
        let carried = i.wrapping_sub(tracker.carried as u32) >> 31;
        let says_nothing = (i == MINOR) as u32 & (trace.flags() >> RECORDS_BIT) as u32;
        let byte = match tracker.carry.get(i as usize) {
            Some(byte) => *byte,
            None => 0,
        };
        let differs = (byte ^ trace.byte(i, header, distance)) as u32;
        apart |= differs * (carried & (says_nothing ^ 1));
        i += 1;
    }
    apart == 0
}

/// Distance from a header to the next one, with `beyond` [strides](Tracker::beyond).
#[inline(always)]
const fn distance(from: u32, to: u32, beyond: u64) -> u64 {
    to.wrapping_sub(from) as u64 + (beyond << STRIDE_BITS)
}

/// Tracker after the first `have` bytes of a header, with the next one at that distance.
#[inline(always)]
fn cut_at(trace: &Trace, have: u32, distance: u64) -> Tracker {
    let mut tracker = Tracker::new(trace.seq, trace.flags() & !TOP_SET);
    tracker.mark = trace.mark;
    tracker.carried = have as u8;
    let header = trace.header();
    let mut i = 0u32;
    while i < MAX_HEADER as u32 {
        let kept = ((i.wrapping_sub(have) >> 31) as u8).wrapping_neg();
        if let Some(byte) = tracker.carry.get_mut(i as usize) {
            *byte = trace.byte(i, header, distance) & kept;
        }
        i += 1;
    }
    tracker
}

/// Current tracker, with the carried part of a split header shortened to what is before `seq`.
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
