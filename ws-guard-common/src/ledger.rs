//! Ledger of a flow: every header that passed and is not acknowledged, to judge retransmissions.
//!
//! The server may hold any of the segments that passed: it discards some, and the guard cannot see
//! which. Where two overlap it may take one's first bytes and the other's last ones. Its stream is
//! certain to be the one that was followed if *every copy of a header that passed was the same*, at
//! the same position; payload and masking keys are free. So the ledger has a [`Trace`] of each such
//! header, and a retransmission passes, however it is cut, if it has the traced headers and no other:
//! one walk from the tracker at its first byte, whose [mark](Tracker::mark) proves them at its end.
//! Pings that were defused are defused again: those in the [`Interval`] between the first and the
//! last of them.
//!
//! Other bytes count as new only with evidence that the server holds nothing unacknowledged in
//! order: [`Flow::is_settled`]. A client whose retransmission cannot be judged would stall, so that its
//! flow goes out of sync once nothing has passed for [`STALLED_NS`], unless much is behind it.
//!
//! The flow has room for [`RING`] traces; with more headers in flight they are in a
//! [trail](crate::trail). Where the flow needs one and has none, a segment with many headers keeps the
//! position of its first one, and may come again whole, or with others, but not in parts. Where there is
//! no room for that either, or for one trace in a full trail, the latest trace gives way, and what begins
//! there is not known.

use crate::{
    flow::{Flow, LEDGER, REPLACED, UNREAD, state},
    frame::SHORTEST_MASKED,
    seq::{after, before, later},
    tracker::{Tracker, Walk},
    trail::{TOGETHER, TRACES, Trace, Traces, give_way, is_aged, knows, stood_at},
};

/// Maximum of traces in a flow, a power of two.
pub const RING: usize = 1 << RING_BITS;
const RING_BITS: u32 = 4;
/// Maximum of traces of a segment that are kept in a flow that needs a trail and has none.
pub const FEWEST: u32 = 2;
/// Traces of most segments with more than one header.
const FEW: u32 = 4;

/// Time after the latest passed segment until the server has acknowledged all that it holds in
/// order, ns. (Linux delays acknowledgements by at most 200 ms.)
///
/// Only a later segment of the server proves that, not its silence: its segments wait for the
/// client's Ethernet address before they reach the guard, and the client need not answer that
/// request.
pub const SETTLED_NS: u64 = 1_000_000_000;
/// Time after a segment of the server until those queued before it have arrived, ns.
pub const FLUSHED_NS: u64 = 100_000_000;

/// Time without a segment that passes after which a retransmission that cannot be judged puts its flow out
/// of sync, ns: it is the fourth or fifth one of a TCP (RFC 6298, 5.5).
pub const STALLED_NS: u64 = 3_000_000_000;

/// Range of sequence numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interval {
    pub from: u32,
    /// 0 for an empty one.
    pub len: u32,
}

impl Interval {
    /// 1 if `seq` is in it, otherwise 0. Without a branch: the kernel's verifier would follow both
    /// sides.
    #[inline(always)]
    pub const fn has(&self, seq: u32) -> u32 {
        ((seq.wrapping_sub(self.from) as u64).wrapping_sub(self.len as u64) >> 63) as u32
    }

    /// Extend it so that all from `from` to `to` is in it.
    #[inline(always)]
    const fn extend(&mut self, from: u32, to: u32) {
        let (first, last) = (self.from, self.from.wrapping_add(self.len));
        let (first, last) = if self.len == 0 { (from, to) } else { (first, later(last, to)) };
        self.from = if before(from, first) { from } else { first };
        self.len = last.wrapping_sub(self.from);
    }

    /// Remove what is from `from` on, if it ends at `to`.
    #[inline(always)]
    const fn retract(&mut self, from: u32, to: u32) {
        let len = from.wrapping_sub(self.from);
        if self.from.wrapping_add(self.len) == to && len < self.len {
            self.len = len;
        }
    }

    /// Remove what is before `seq`. Without a branch, as above.
    #[inline(always)]
    const fn forget(&mut self, seq: u32) {
        let ahead = seq.wrapping_sub(self.from);
        let gone = ahead & (ahead >> 31).wrapping_sub(1);
        let left = (self.len as u64).wrapping_sub(gone as u64);
        self.len = left as u32 & ((left >> 63) as u32).wrapping_sub(1);
        self.from = self.from.wrapping_add(gone);
    }
}

impl Traces for Flow {
    const BITS: u32 = RING_BITS;

    #[inline(always)]
    fn trace(&self, i: u32) -> &Trace {
        &self.ring[i as usize & (RING - 1)]
    }

    #[inline(always)]
    fn put(&mut self, i: u32, trace: Trace) {
        self.ring[i as usize & (RING - 1)] = trace;
    }
}

impl Flow {
    /// Check whether the segment from `seq` to `end`, which has provisional headers, may be judged.
    ///
    /// Of a segment that [replaced](REPLACED) others the server may hold any but the first byte: it
    /// may be retransmitted from that byte to its end, not in parts.
    #[inline(always)]
    pub(crate) fn may_repeat(&self, seq: u32, end: u32) -> bool {
        let from = later(seq, self.acked);
        let replaced = self.flags & REPLACED != 0 && before(from, self.replaced);
        let part = after(seq, self.acked) || before(end, self.replaced);
        !(before(from, self.traced_from) || replaced && part)
    }

    /// Check whether the segment from `seq` to `end` begins with the byte that the server waits for
    /// and reaches the end of all that passed: if the server takes any of it, it replaces what it
    /// holds.
    #[inline(always)]
    pub fn is_covered_by(&self, seq: u32, end: u32) -> bool {
        self.held == 0 && !after(seq, self.acked) && !after(self.high, end)
    }

    /// Check whether the segment from `seq` to `end` has the byte that the server waits for. If it is refused
    /// while nothing else passes, it comes again and again, and the client stalls.
    ///
    /// Not if the server may hold more than [`UNREAD`] bytes behind it: in another frame's payload pings may have
    /// passed, and it would read them all at once.
    #[inline(always)]
    pub fn is_stuck_at(&self, seq: u32, end: u32) -> bool {
        let waits = !after(seq, self.acked) && after(end, self.acked);
        let few = self.high.wrapping_sub(end) as i32 <= UNREAD as i32;
        waits && few && self.held == 0
    }

    /// Put a flow out of sync that is [stuck](Flow::is_stuck_at). What has passed counts as unread.
    #[inline(always)]
    pub fn give_up(&mut self) {
        let behind = self.high.wrapping_sub(self.acked);
        self.lose_step();
        self.unread = if behind > self.unread { behind } else { self.unread };
    }

    /// Check whether the walk reaches the stream's current position, or continues from it.
    #[inline(always)]
    pub fn is_reached(&self, walk: &Walk) -> bool {
        walk.joined || walk.tracker == self.client
    }

    /// [`stood_at`] for traces in the flow.
    #[inline(always)]
    pub fn stood_at(&self, seq: u32) -> Option<Tracker> {
        stood_at(self, self, seq)
    }

    /// [`knows`] for traces in the flow.
    #[inline(always)]
    pub fn knows(&self, tracker: &Tracker) -> bool {
        knows(self, self, tracker)
    }

    /// Commit a rewalk of known bytes; `known` is [`Flow::client`] before it, `passed` counts new
    /// pings only.
    #[inline(always)]
    pub fn repeated(&mut self, known: &Tracker, walk: &Walk, passed: u32) {
        self.let_through(walk.base(), walk.len());
        if walk.joined {
            self.commit(known, walk, passed);
        }
    }

    /// Set the stream back to the tracker `start` at the acknowledged byte: the walk to be committed next
    /// replaces all that followed.
    #[inline(always)]
    pub fn set_back(&mut self, start: &Tracker) {
        self.client = *start;
        self.trace_anew();
    }

    /// Record that the bytes up to `end`, committed just now, have replaced others. If the server has
    /// not `settled`, it may hold those, and where frames begin is unknown.
    #[inline(always)]
    pub fn replaced_to(&mut self, end: u32, settled: bool) {
        self.flags |= REPLACED;
        self.replaced = end;
        if !settled & (self.state == state::OPEN) {
            self.lose_step();
        }
    }

    /// Check whether the server has sent a segment long after the client's latest one.
    #[inline(always)]
    pub const fn has_repeated(&self) -> bool {
        self.repeated_ns.saturating_sub(self.last_ns) >= SETTLED_NS
    }

    /// Check whether the server has proved that it holds nothing unacknowledged in order: it has
    /// sent a segment long after the client's latest one, and no older one has arrived since.
    #[inline(always)]
    pub const fn is_settled(&self, now_ns: u64) -> bool {
        self.has_repeated() && now_ns.saturating_sub(self.repeated_ns) >= FLUSHED_NS
    }

    /// Record a committed segment in which a header began or ended, `passed` of whose new pings
    /// passed.
    #[inline(always)]
    pub(crate) fn keep(&mut self, walk: &Walk, passed: u32) {
        self.provisional = walk.end();
        if passed < walk.pings {
            self.defused_pings.extend(walk.passed_to(), walk.end());
        }
    }

    /// Correct a committed segment: `pings` fewer passed, and none that begins from `from` to `to`.
    #[inline(always)]
    pub const fn take_back(&mut self, pings: u32, from: u32, to: u32) {
        self.defused += pings as u64;
        self.defused_pings.extend(from, to);
    }

    /// Correct the segment up to `end`: its one ping, which begins at `from` and which [`Flow::commit_one`]
    /// recorded as defused, passes.
    #[inline(always)]
    pub const fn give_back(&mut self, from: u32, end: u32) {
        self.defused = self.defused.saturating_sub(1);
        self.defused_pings.retract(from, end);
    }

    /// Forget what the server has acknowledged.
    #[inline(always)]
    pub(crate) fn forget(&mut self, ack: u32) {
        self.defused_pings.forget(ack);
        self.traced_from = later(self.traced_from, ack);
        if after(self.provisional, ack) {
            return;
        }
        self.trace_anew();
        // Another flow may take it.
        self.trail = 0;
    }

    /// Empty the ledger: everything from the acknowledged byte on is payload, or new.
    #[inline(always)]
    pub fn trace_anew(&mut self) {
        self.traces = 0;
        (self.provisional, self.traced_from) = (self.acked, self.acked);
        self.defused_pings.len = 0;
        self.flags &= !REPLACED;
    }

    /// Invalidate all traces: nothing that has passed can be judged any more.
    #[inline(always)]
    pub fn lose_traces(&mut self) {
        self.traces = 0;
        self.traced_from = later(self.high, self.provisional);
    }

    /// Take over a flow from programs of a schema before 15, which kept checkpoints in place of
    /// traces: those in a trail stay, others are lost.
    #[inline(always)]
    pub fn adopt(&mut self) {
        if self.format == LEDGER {
            return;
        }
        let provisional = self.format > 0xFF;
        self.format = LEDGER;
        if !provisional {
            self.trail = 0;
            return self.trace_anew();
        }
        self.flags &= !REPLACED;
        self.provisional = self.high;
        self.defused_pings = Interval { from: self.acked, len: self.high.wrapping_sub(self.acked) };
        if self.trail == 0 {
            self.lose_traces();
        }
    }

    /// Forget the traces in the flow if the oldest one is too far before `seq`, where another one begins, to be
    /// compared.
    #[inline(always)]
    const fn forget_aged(&mut self, seq: u32) {
        let oldest = self.ring[self.first_trace() as usize & (RING - 1)].seq;
        if self.traces != 0 && is_aged(oldest, seq) {
            self.traces = 0;
            self.traced_from = seq;
        }
    }

    /// Number of the oldest valid trace.
    #[inline(always)]
    pub const fn first_trace(&self) -> u32 {
        self.next_trace.wrapping_sub(self.traces as u32)
    }

    /// Room for further traces in a trail.
    #[inline(always)]
    pub const fn trail_room(&self) -> u32 {
        TRACES - self.traces as u32
    }

    /// Room for further traces where they are now.
    #[inline(always)]
    pub const fn room(&self) -> u32 {
        if self.trail != 0 {
            self.trail_room()
        } else {
            (RING as u32).wrapping_sub(self.traces as u32)
        }
    }

    /// Check whether the flow needs a trail: a segment of `len` bytes may have more headers than there is
    /// room for, or out-of-order segments are kept.
    #[inline(always)]
    pub const fn needs_trail(&self, len: u32) -> bool {
        let many = len / (SHORTEST_MASKED * TOGETHER) + 2 > self.room();
        self.trail == 0 && (many || self.held != 0)
    }

    /// Check whether a segment with `count` traces may pass, with `room` for them. Not one of many into a full
    /// trail: it comes again once there is room, and shortened it could not come again in other cuts.
    #[inline(always)]
    pub const fn fits(&self, count: u32, room: u32) -> bool {
        self.trail == 0 || count <= room || count == 1
    }

    /// Shorten `count` traces of a walk from `start` to `end` to the `room` that there is: to the position
    /// of the first header, or of the second after one that was split. That is the rule where the flow has
    /// `many`: it [needs a trail](Flow::needs_trail), and has none. Returns how many traces they are now;
    /// the first ones are in `left`.
    #[inline(always)]
    pub const fn shorten(
        &self,
        left: &mut [Trace; RING],
        (count, room): (u32, u32),
        many: bool,
        start: &Tracker,
        end: u32,
    ) -> u32 {
        let split = (start.carried != 0) as u32;
        if count == 1 || count <= room && !(many && count > 1 + split) {
            return count;
        }
        let split = if room > split { split } else { 0 };
        let first = &mut left[split as usize & (RING - 1)];
        *first = first.vague(self.client.flags, end);
        1 + split
    }

    /// Keep a trace in the flow. Without room it takes the [latest one's place](give_way).
    #[inline(always)]
    pub fn trace_one(&mut self, trace: Trace) {
        self.forget_aged(trace.seq);
        let full = (self.traces as usize >= RING) as u32;
        let at = self.next_trace.wrapping_sub(full);
        if full != 0 {
            let flags = self.client.flags;
            give_way(self, at, flags);
        }
        self.put(at, trace);
        self.next_trace = at.wrapping_add(1);
        self.traces += 1 - full as u16;
    }

    /// Keep `count` [shortened](Flow::shorten) traces of a committed segment in the flow, the first ones
    /// in `left`.
    #[inline(always)]
    pub fn trace_all(&mut self, left: &[Trace; RING], count: u32) {
        if count == 1 {
            return self.trace_one(left[0]);
        }
        if count == 0 {
            return;
        }
        self.forget_aged(left[0].seq);
        // Without a branch for each: the kernel's verifier would follow both sides.
        let mut i = 0;
        while i < RING as u32 {
            if i == FEW && count <= FEW {
                break;
            }
            let counts = (i.wrapping_sub(count) >> 31).wrapping_neg();
            let place = &mut self.ring[self.next_trace.wrapping_add(i) as usize & (RING - 1)];
            let (new, old) = (left[i as usize], *place);
            place.seq = old.seq ^ (new.seq ^ old.seq) & counts;
            place.mark = old.mark ^ (new.mark ^ old.mark) & counts;
            place.word = old.word ^ (new.word ^ old.word) & counts;
            i += 1;
        }
        self.next_trace = self.next_trace.wrapping_add(count);
        self.traces += count as u16;
    }

    /// Validate `count` [shortened](Flow::shorten) traces of a committed walk in the trail. Returns
    /// whether the trail is full: then the one trace takes the [latest one's place](give_way).
    #[inline(always)]
    pub const fn take_traces(&mut self, count: u32) -> bool {
        let full = count > self.trail_room();
        let new = if full { 0 } else { count };
        self.next_trace = self.next_trace.wrapping_add(new);
        self.traces += new as u16;
        full
    }

    /// Drop the traces of `count` acknowledged headers, except the latest, which begins at `seq`
    /// and may not be acknowledged to its end.
    #[inline(always)]
    pub fn drop_traces(&mut self, count: u32, seq: u32) {
        if count > 1 && count <= self.traces as u32 {
            self.traces -= (count - 1) as u16;
            self.traced_from = later(self.traced_from, seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_what_is_between_its_ends() {
        let mut interval = Interval::default();
        assert_eq!(interval.has(0), 0);
        interval.extend(u32::MAX - 1, 3);
        let has = |interval: Interval, seq: u32| interval.has(seq) == 1;
        assert!(!has(interval, u32::MAX - 2) && has(interval, u32::MAX - 1) && has(interval, 2));
        assert!(!has(interval, 3) && !has(interval, 1 << 31));
        interval.forget(1);
        assert!(!has(interval, 0) && has(interval, 1) && has(interval, 2));
        interval.extend(7, 9);
        assert!(has(interval, 1) && has(interval, 8) && !has(interval, 9));
        interval.extend(0, 8);
        assert!(has(interval, 0) && has(interval, 8) && !has(interval, 9));
        interval.retract(6, 8);
        assert!(has(interval, 8), "it does not end there");
        interval.retract(6, 9);
        assert!(has(interval, 5) && !has(interval, 6) && !has(interval, 8));
        interval.forget(20);
        assert_eq!(interval.len, 0);
        interval.retract(20, 20);
        assert_eq!(interval.len, 0);
    }
}
