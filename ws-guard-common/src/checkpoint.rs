//! Checkpoints: the state kept for unacknowledged segments, to judge their retransmissions.
//!
//! The server may hold any of these segments: it discards some, and the guard cannot see which.
//! Where two of them overlap it may take one's first bytes and the other's last ones. Its stream is
//! certain to be the one that was followed only if, at each possible change from one segment to
//! another, both have the same tracker. So the boundaries between segments are kept, and a
//! retransmission passes if it
//!
//! - ends with the tracker of a known boundary, reached by the same headers, which its
//!   [mark](Tracker::mark) proves; or
//! - ends inside the one segment that the server waits for, of which it cannot hold anything: it
//!   then leaves a boundary of its own, [`UNPROVEN`] until a walk from there has reached the next
//!   one.
//!
//! All others are refused. An honest sender retransmits from the acknowledged byte on.

use crate::{
    flow::{Action, Flow, Plan, REWOUND},
    seq::{after, before, later},
    tracker::{Tracker, Walk},
};

/// Maximum of unacknowledged segments with headers that have a checkpoint each.
pub const CHECKPOINTS: usize = 8;
const SLOT: u8 = CHECKPOINTS as u8 - 1;

/// Time after the latest passed segment until the server has acknowledged all that it holds in
/// order, ns. (Linux delays acknowledgements by at most 200 ms.)
///
/// Only a later segment of the server proves that, not its silence: its segments wait for the
/// client's Ethernet address before they reach the guard, and the client need not answer that
/// request.
pub const SETTLED_NS: u64 = 1_000_000_000;
/// Time after a segment of the server until those queued before it have arrived, ns.
pub const FLUSHED_NS: u64 = 100_000_000;

/// State of the stream before an unacknowledged segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Checkpoint {
    /// The tracker before the segment.
    pub start: Tracker,
    /// Sequence number of the first byte of the segment, or of its latest retransmission that
    /// passed.
    pub begin: u32,
    /// Sequence number behind its last byte.
    pub end: u32,
    /// Pings that began in the segment.
    pub pings: u16,
    /// Number of them that passed, the first ones; the others were defused.
    pub passed: u16,
    /// [`MERGED`], [`UNPROVEN`], [`REPLACES`].
    pub flags: u32,
}

/// The checkpoint covers several segments; the trackers between them are not kept.
pub const MERGED: u32 = 1 << 0;
/// The start is the end of a shorter retransmission inside an earlier segment.
/// A walk from here will show whether both were the same; until then nothing may reach across.
pub const UNPROVEN: u32 = 1 << 1;
/// The segment replaced others, of which the server may hold any but the first byte. It may be
/// retransmitted from that byte to its end, not in parts.
pub const REPLACES: u32 = 1 << 2;

/// All headers in the segment are the first ones received ([`crate::trail`]).
pub const KNOWN: u8 = 1 << 0;
/// No segment passed for [`SETTLED_NS`].
pub const SETTLED: u8 = 1 << 1;

/// Verdict about a retransmission, from [`Flow::rewalk_budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewalk {
    /// The same frames as before: this number of pings passes.
    Same(u32),
    /// The same frames as before, between any two offsets: the number of pings is
    /// [`Flow::old_pings`].
    Known,
    /// Other bytes in place of everything unacknowledged, long after the server would have
    /// acknowledged it: they count as new.
    New,
    /// Other bytes than before, while the server may hold some of those.
    Refuse,
}

/// Part of a flow before [`Flow::rewind`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Rewindable {
    pub client: Tracker,
    pub kept: u8,
    pub doubted: u8,
    pub _pad: [u8; 2],
}

impl Flow {
    /// End of the newest checkpoint's segment.
    #[inline(always)]
    pub(crate) fn provisional_end(&self) -> u32 {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        self.checkpoints[newest as usize].end
    }

    /// The newest checkpoint.
    #[inline(always)]
    pub(crate) fn newest(&mut self) -> &mut Checkpoint {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        &mut self.checkpoints[newest as usize]
    }

    /// Plan for a segment that overlaps unacknowledged ones with headers.
    #[inline(always)]
    pub(crate) fn plan_rewalk(&self, seq: u32, end: u32) -> Plan {
        let from = later(seq, self.acked);
        let mut plan = Plan { action: Action::NoCheckpoint, checkpoint: 0 };
        let oldest = &self.checkpoints[(self.oldest & SLOT) as usize];
        let part = before(seq, oldest.end) && (after(seq, self.acked) || before(end, oldest.end));
        if oldest.flags & REPLACES != 0 && part {
            return plan;
        }
        // Bytes before `covered` may hold headers of skipped checkpoints.
        let mut covered = self.acked;
        let mut i = 0u8;
        while i < CHECKPOINTS as u8 {
            let checkpoint = &self.checkpoints[(self.oldest.wrapping_add(i) & SLOT) as usize];
            if i >= self.kept || plan.action as u8 != Action::NoCheckpoint as u8 {
                break;
            }
            let resume = checkpoint.start.resume();
            if !before(resume, from) && !after(covered, from) {
                plan.checkpoint = i;
                plan.action = if before(resume, end) { Action::Rewalk } else { Action::Pass };
            }
            covered = checkpoint.end;
            i += 1;
        }
        plan
    }

    /// Decide what a rewalk from checkpoint `first` may pass, after a dry walk of the same segment.
    ///
    /// The server may hold any of the provisional segments. Its stream stays the one that was
    /// followed if, at every boundary between two of them, the next one starts from the same state.
    /// So a rewalk has to end with the tracker of a known boundary; or inside one single segment,
    /// of which the server holds all or nothing, and there it leaves a boundary of its own
    /// ([`Flow::rewalked`]).
    ///
    /// `facts`: [`KNOWN`], [`SETTLED`]. (In one word, because a function of a kernel program has at
    /// most five arguments.)
    #[inline(never)]
    pub fn rewalk_budget(&self, first: u8, dry: &Walk, facts: u8) -> Rewalk {
        let mut passed = 0;
        let mut all = true;
        let mut same = false;
        let mut across = false;
        let from = later(dry.base(), self.acked);
        let (mut begin, mut boundary, mut older) = (from, from, from);
        let mut i = 0u8;
        while i < CHECKPOINTS as u8 {
            let checkpoint = &self.checkpoints[(self.oldest.wrapping_add(i) & SLOT) as usize];
            if i >= first && i < self.kept && !same {
                // No tracker before that segment's end can equal the one at its end.
                same = i > first && checkpoint.start == dry.tracker && after(dry.end(), older);
                // To an unproven boundary only from inside the segment that it divides; across it
                // never.
                let to = same && !before(from, begin) || !same && !after(dry.end(), boundary);
                across |= i > first && checkpoint.flags & UNPROVEN != 0 && !to;
                // Pings that passed after a defused one are defused this time.
                passed += if all & !same { checkpoint.passed as u32 } else { 0 };
                all &= checkpoint.passed == checkpoint.pings;
                (begin, boundary, older) = (checkpoint.begin, checkpoint.end, boundary);
            }
            i += 1;
        }
        let divided = &self.checkpoints[(self.oldest.wrapping_add(first) & SLOT) as usize];
        if across {
            Rewalk::Refuse
        } else if same || (dry.joined || dry.tracker == self.client) && after(dry.end(), older) {
            Rewalk::Same(passed)
        } else if facts & KNOWN != 0 {
            Rewalk::Known
        } else if self.may_split(divided, dry) {
            Rewalk::Same(divided.passed as u32)
        } else if facts & SETTLED != 0 && first == 0 && self.held == 0 && self.replaces_all(dry) {
            Rewalk::New
        } else {
            Rewalk::Refuse
        }
    }

    /// Check whether the segment begins with the byte that the server waits for and reaches the end
    /// of all that passed: if the server takes any of it, it replaces what it holds.
    #[inline(always)]
    fn replaces_all(&self, walk: &Walk) -> bool {
        !after(walk.base(), self.acked) && !after(self.high, walk.end())
    }

    /// Check whether the walk ends inside the one segment of `checkpoint`, with room for a
    /// boundary.
    ///
    /// It must be the segment that the server waits for: of any other one it may hold the last
    /// bytes, and take the first ones from an overlapping one.
    #[inline(always)]
    fn may_split(&self, checkpoint: &Checkpoint, walk: &Walk) -> bool {
        // Without a header in the rest, the trackers would be equal.
        let awaited = !after(checkpoint.begin, self.acked) && !after(walk.base(), self.acked);
        let inside = awaited
            && before(walk.tracker.resume(), checkpoint.end)
            && before(walk.end(), checkpoint.end)
            && after(walk.end(), self.acked);
        let whole = checkpoint.flags & (MERGED | REPLACES) == 0 && self.pieces == 0;
        inside && whole && self.kept < CHECKPOINTS as u8
    }

    /// Number of pings that pass in known bytes between any two offsets: all of them, or none if
    /// any ping in flight was defused, because which ones is not recorded.
    #[inline(always)]
    pub const fn old_pings(&self) -> u32 {
        if self.mixed == 0 { Walk::UNLIMITED } else { 0 }
    }

    /// Commit a rewalk of known bytes; `known` and `passed` as in [`Flow::rewalked`].
    #[inline(always)]
    pub fn repeated(&mut self, known: &Tracker, walk: &Walk, passed: u32) {
        self.pieces = 1;
        if walk.joined {
            self.commit(known, walk, passed);
        }
    }

    /// Move the end of a segment from `first` on forward, where a rewalk reached its tracker
    /// earlier: only payload follows, and the next segment may start there.
    #[inline(always)]
    fn shorten(&mut self, first: u8, known: &Tracker, walk: &Walk) {
        let mut next = *known;
        let mut i = CHECKPOINTS as u8;
        while i > 0 {
            i -= 1;
            let at = (self.oldest.wrapping_add(i) & SLOT) as usize;
            if i >= first && i < self.kept {
                let checkpoint = &mut self.checkpoints[at];
                if next == walk.tracker && before(walk.end(), checkpoint.end) {
                    checkpoint.end = walk.end();
                }
                next = checkpoint.start;
            }
        }
    }

    /// Commit a rewalk from checkpoint `first`, as judged by [`Flow::rewalk_budget`]; `known` is
    /// [`Flow::client`] before it, `passed` counts new pings only.
    #[inline(always)]
    pub fn rewalked(&mut self, first: u8, known: &Tracker, walk: &Walk, passed: u32) {
        let at = (self.oldest.wrapping_add(first) & SLOT) as usize;
        let begin = later(walk.base(), self.acked);
        self.checkpoints[at].begin = later(self.checkpoints[at].begin, begin);
        if walk.joined || !before(walk.end(), self.checkpoints[at].end) {
            // It found the same headers as the first one.
            self.checkpoints[at].flags &= !UNPROVEN;
        }
        self.shorten(first, known, walk);
        if walk.joined {
            self.commit(known, walk, passed);
            return;
        }
        let whole = self.checkpoints[at];
        if walk.tracker == whole.start || !self.may_split(&whole, walk) {
            return;
        }
        let (pings, passed) = (walk.old_pings as u16, whole.passed);
        let passed_here = if passed < pings { passed } else { pings };
        let mut rest = whole;
        rest.start = walk.tracker;
        rest.begin = walk.end();
        rest.flags = UNPROVEN;
        rest.pings = whole.pings.saturating_sub(pings);
        rest.passed = whole.passed - passed_here;
        let part = &mut self.checkpoints[at];
        part.end = walk.end();
        part.pings = pings;
        part.passed = passed_here;
        // Move the later checkpoints up by one, and insert the rest.
        let mut i = 0u8;
        while i < CHECKPOINTS as u8 {
            if i > first && i <= self.kept {
                let slot = &mut self.checkpoints[(self.oldest.wrapping_add(i) & SLOT) as usize];
                core::mem::swap(slot, &mut rest);
            }
            i += 1;
        }
        self.kept += 1;
    }

    /// Tracker at checkpoint `i`, counted from the oldest.
    #[inline(always)]
    pub fn checkpoint(&self, i: u8) -> Option<Tracker> {
        let at = self.oldest.wrapping_add(i) & SLOT;
        if i < self.kept { Some(self.checkpoints[at as usize].start) } else { None }
    }

    /// Check whether checkpoint `i`, counted from the oldest, has the tracker `start`.
    #[inline(always)]
    pub fn starts_at(&self, i: u8, start: &Tracker) -> bool {
        let at = self.oldest.wrapping_add(i) & SLOT;
        i < self.kept && self.checkpoints[at as usize].start == *start
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

    /// Set the stream back to checkpoint `first`: other bytes replace what followed.
    /// If the server has `settled`, it is known not to hold that.
    #[inline(always)]
    pub fn rewind(&mut self, first: u8, settled: bool) {
        let at = self.oldest.wrapping_add(first) & SLOT;
        self.client = self.checkpoints[at as usize].start;
        self.kept = first;
        self.doubted = !settled as u8;
        self.flags |= REWOUND;
        self.trace_anew();
    }

    /// State that [`Flow::rewind`] would restore.
    #[inline(always)]
    pub const fn rewindable(&self) -> Rewindable {
        Rewindable { client: self.client, kept: self.kept, doubted: self.doubted, _pad: [0; 2] }
    }

    /// Undo a rewind whose segment did not pass: the server may hold what it was to replace.
    /// The trail of that range is lost, and with it which of its pings were defused.
    #[inline(always)]
    pub fn undo_rewind(&mut self, before: &Rewindable) {
        if self.flags & REWOUND == 0 {
            return;
        }
        (self.client, self.kept, self.doubted) = (before.client, before.kept, before.doubted);
        self.flags &= !REWOUND;
        self.trace_anew();
        (self.mixed, self.pieces) = (1, 1);
    }

    /// Check whether all checkpoints are in use.
    #[inline(always)]
    pub const fn is_crowded(&self) -> bool {
        self.kept >= CHECKPOINTS as u8
    }

    /// Forget the checkpoints of segments that the server has acknowledged.
    #[inline(always)]
    pub(crate) fn forget(&mut self, ack: u32) {
        let mut i = 0u8;
        while i < CHECKPOINTS as u8 {
            let oldest = &self.checkpoints[(self.oldest & SLOT) as usize];
            if self.kept == 0 || after(oldest.end, ack) {
                break;
            }
            self.oldest = self.oldest.wrapping_add(1) & SLOT;
            self.kept -= 1;
            i += 1;
        }
        if self.kept == 0 {
            self.trace_anew();
            // Another flow may take it; otherwise the next trace takes it again.
            self.trail = 0;
            (self.mixed, self.pieces) = (0, 0);
        }
    }

    /// Add a checkpoint for a segment; when the ring is full, the newest one is extended.
    #[inline(always)]
    pub(crate) fn keep(&mut self, start: &Tracker, walk: &Walk, passed: u32) {
        let pings = if walk.pings > 0xFFFF { 0xFFFF } else { walk.pings as u16 };
        let passed = if passed > 0xFFFF { 0xFFFF } else { passed as u16 };
        let full = self.kept >= CHECKPOINTS as u8;
        let at = self.oldest.wrapping_add(self.kept).wrapping_sub(full as u8) & SLOT;
        let checkpoint = &mut self.checkpoints[at as usize];
        if full {
            let all = checkpoint.passed == checkpoint.pings;
            let passed = if all { passed } else { 0 };
            checkpoint.pings = checkpoint.pings.saturating_add(pings);
            checkpoint.passed = checkpoint.passed.saturating_add(passed);
            checkpoint.flags |= MERGED;
        } else {
            checkpoint.flags = if self.flags & REWOUND != 0 { REPLACES } else { 0 };
            checkpoint.start = *start;
            checkpoint.begin = walk.base();
            checkpoint.pings = pings;
            checkpoint.passed = passed;
            self.kept += 1;
        }
        checkpoint.end = walk.end();
        self.flags &= !REWOUND;
    }

    /// Correct the newest segment: `pings` fewer passed than [`Flow::commit`] recorded, the last
    /// `over` of them.
    ///
    /// Where others in a merged checkpoint were defused before, none of these counts as passed.
    #[inline(always)]
    pub fn take_back(&mut self, pings: u32, over: u32) {
        let checkpoint = self.newest();
        let most = (checkpoint.pings as u32).saturating_sub(over) as u16;
        checkpoint.passed = if checkpoint.passed < most { checkpoint.passed } else { most };
        self.defused += pings as u64;
        self.mixed = 1;
    }

    /// Correct the newest segment: its one ping, which [`Flow::commit_one`] recorded as defused, passes.
    ///
    /// Others in flight may be defused, and so it still counts as mixed.
    #[inline(always)]
    pub fn give_back(&mut self) {
        let checkpoint = self.newest();
        let last = checkpoint.passed.saturating_add(1) == checkpoint.pings;
        checkpoint.passed += last as u16;
        self.defused = self.defused.saturating_sub(1);
    }
}
