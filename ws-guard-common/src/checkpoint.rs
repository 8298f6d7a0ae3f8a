//! Checkpoints: what the guard keeps of segments that the server has not acknowledged, to judge
//! them when they come again.
//!
//! The server may hold any of these segments: it throws some away, and nobody sees which. Where two
//! of them overlap it may take one's first bytes and the other's last ones. Its stream is the one
//! that was followed only if, wherever it may change from one segment to another, both stand in the
//! same state. So the borders between segments are kept, and a segment that comes again passes if it
//!
//! - ends where the stream stood at a known border, by the same way, which its
//!   [mark](Tracker::mark) tells; or
//! - ends inside the one segment that the server waits for, of which it cannot hold anything: then
//!   it leaves a border of its own, [`UNPROVEN`] until a walk from there has come to the next one.
//!
//! All others are refused. An honest sender comes back from the acknowledged byte on.

use crate::{
    flow::{Action, Flow, Plan, REWOUND},
    seq::{after, before, later},
    tracker::{Tracker, Walk},
};

/// How many segments with headers a flow may have unacknowledged with a checkpoint each.
pub const CHECKPOINTS: usize = 8;
const SLOT: u8 = CHECKPOINTS as u8 - 1;

/// So long after the latest segment that was let through, the server has acknowledged all that it
/// holds in order, nanoseconds. (Linux delays acknowledgements by at most 200 ms.)
///
/// What it has said since then shows that. Its silence does not: its segments wait for the client's
/// Ethernet address before they come to the guard, and the client need not answer who asks for that.
pub const SETTLED_NS: u64 = 1_000_000_000;
/// So long after a segment of the server, those that waited behind it have come as well, nanoseconds.
pub const FLUSHED_NS: u64 = 100_000_000;

/// Where the stream stood before a segment that is not yet acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Checkpoint {
    /// The tracker before the segment.
    pub start: Tracker,
    /// Sequence number of the first byte of the segment, or of the latest one that passed again.
    pub begin: u32,
    /// Sequence number behind its last byte.
    pub end: u32,
    /// Pings that began in the segment.
    pub pings: u16,
    /// How many of them, the first ones, passed; the others were defused.
    pub passed: u16,
    /// [`MERGED`], [`UNPROVEN`], [`REPLACES`].
    pub flags: u32,
}

/// The checkpoint stands for several segments, and where the stream stood between them is not kept.
pub const MERGED: u32 = 1 << 0;
/// Its start is where a shorter retransmission ended, inside a segment that came before. Whether
/// both were the same, a walk from here will show; until then nothing may reach across.
pub const UNPROVEN: u32 = 1 << 1;
/// The segment took the place of others, of which the server may hold any but the first byte: it
/// may come again from that byte to its end, not in parts.
pub const REPLACES: u32 = 1 << 2;

/// All headers in the segment are those that came first ([`crate::trail`]).
pub const KNOWN: u8 = 1 << 0;
/// No segment was let through for [`SETTLED_NS`].
pub const SETTLED: u8 = 1 << 1;

/// What a rewalk may let pass, from [`Flow::rewalk_budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewalk {
    /// The same frames as before: so many pings pass.
    Same(u32),
    /// The same frames as before, between any two places: as many pings as [`Flow::old_pings`] says.
    Known,
    /// Other bytes than before, in place of all that the server has not acknowledged, long after it
    /// would have: they count as new.
    New,
    /// Other bytes than before, and the server may hold some of those.
    Refuse,
}

impl Flow {
    /// Sequence number behind the newest of the kept checkpoints' segments.
    #[inline(always)]
    pub(crate) fn provisional_end(&self) -> u32 {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        self.checkpoints[newest as usize].end
    }

    /// The newest of the kept checkpoints.
    #[inline(always)]
    pub(crate) fn newest(&mut self) -> &mut Checkpoint {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        &mut self.checkpoints[newest as usize]
    }

    /// The segment overlaps others with headers that the server has not acknowledged.
    #[inline(always)]
    pub(crate) fn plan_rewalk(&self, seq: u32, end: u32) -> Plan {
        let from = later(seq, self.acked);
        let mut plan = Plan { action: Action::NoCheckpoint, checkpoint: 0 };
        let oldest = &self.checkpoints[(self.oldest & SLOT) as usize];
        let part = before(seq, oldest.end) && (after(seq, self.acked) || before(end, oldest.end));
        if oldest.flags & REPLACES != 0 && part {
            return plan;
        }
        // Bytes before `covered` may hold headers of checkpoints passed over.
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

    /// What a rewalk from checkpoint `first` may let pass, after a dry walk of the same segment.
    ///
    /// The server may hold any of the provisional segments. Its stream stays the one that was
    /// followed if, at every border between two of them, what comes next starts from the same
    /// state. So a rewalk has to end where the stream stood at a known border, by the same way; or
    /// inside one single segment, of which the server holds all or nothing, and there it leaves a
    /// border of its own ([`Flow::rewalked`]).
    ///
    /// `facts`: [`KNOWN`], [`SETTLED`]. (In one word, because a function of a kernel program has five
    /// arguments at most.)
    #[inline(never)]
    pub fn rewalk_budget(&self, first: u8, dry: &Walk, facts: u8) -> Rewalk {
        let mut passed = 0;
        let mut all = true;
        let mut same = false;
        let mut across = false;
        let from = later(dry.base(), self.acked);
        let (mut begin, mut border, mut older) = (from, from, from);
        let mut i = 0u8;
        while i < CHECKPOINTS as u8 {
            let checkpoint = &self.checkpoints[(self.oldest.wrapping_add(i) & SLOT) as usize];
            if i >= first && i < self.kept && !same {
                // Nothing before the border of that segment can stand where it ended.
                same = i > first && checkpoint.start == dry.tracker && after(dry.end(), older);
                // To an unproven border, only from inside the segment that it divides; across it, not
                // at all.
                let to = same && !before(from, begin) || !same && !after(dry.end(), border);
                across |= i > first && checkpoint.flags & UNPROVEN != 0 && !to;
                // Pings that passed behind one that did not are defused this time.
                passed += if all & !same { checkpoint.passed as u32 } else { 0 };
                all &= checkpoint.passed == checkpoint.pings;
                (begin, border, older) = (checkpoint.begin, checkpoint.end, border);
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

    /// The segment begins with the byte that the server waits for and reaches past all that was let
    /// through: if the server takes any of it, it takes it in place of what it holds.
    #[inline(always)]
    fn replaces_all(&self, walk: &Walk) -> bool {
        !after(walk.base(), self.acked) && !after(self.high, walk.end())
    }

    /// The walk ends inside the one segment that left `checkpoint`, and there is room for a border.
    ///
    /// It has to be the segment that the server waits for: of any other it may hold the last bytes,
    /// and take the first ones of what overlaps.
    #[inline(always)]
    fn may_split(&self, checkpoint: &Checkpoint, walk: &Walk) -> bool {
        // With no header to begin in the rest, it would have ended where the stream stood.
        let awaited = !after(checkpoint.begin, self.acked) && !after(walk.base(), self.acked);
        let inside = awaited
            && before(walk.tracker.resume(), checkpoint.end)
            && before(walk.end(), checkpoint.end)
            && after(walk.end(), self.acked);
        let whole = checkpoint.flags & (MERGED | REPLACES) == 0 && self.pieces == 0;
        inside && whole && self.kept < CHECKPOINTS as u8
    }

    /// How many pings may pass in bytes that are known, but begin and end anywhere: all of them, unless
    /// some that are under way were defused. Which those are nobody knows any more.
    #[inline(always)]
    pub const fn old_pings(&self) -> u32 {
        if self.mixed == 0 { Walk::UNLIMITED } else { 0 }
    }

    /// Bytes that are known were walked again, and are let through; `known` and `passed` as in
    /// [`Flow::rewalked`].
    #[inline(always)]
    pub fn repeated(&mut self, known: &Tracker, walk: &Walk, passed: u32) {
        self.pieces = 1;
        if walk.joined {
            self.commit(known, walk, passed);
        }
    }

    /// A rewalk that ended where one of the segments from `first` on had ended, but earlier, shows
    /// that only payload lies between: what comes next may start there.
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

    /// A rewalk from checkpoint `first` was walked as [`Flow::rewalk_budget`] said and is let
    /// through; `known` is [`Flow::client`] as it was, `passed` counts new pings only.
    #[inline(always)]
    pub fn rewalked(&mut self, first: u8, known: &Tracker, walk: &Walk, passed: u32) {
        let at = (self.oldest.wrapping_add(first) & SLOT) as usize;
        let begin = later(walk.base(), self.acked);
        self.checkpoints[at].begin = later(self.checkpoints[at].begin, begin);
        if walk.joined || !before(walk.end(), self.checkpoints[at].end) {
            // It came the way that the first one came.
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
        // Move what follows up by one, and put the rest in its place.
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

    /// Where the stream stood at checkpoint `i`, counted from the oldest.
    #[inline(always)]
    pub fn checkpoint(&self, i: u8) -> Option<Tracker> {
        let at = self.oldest.wrapping_add(i) & SLOT;
        if i < self.kept { Some(self.checkpoints[at as usize].start) } else { None }
    }

    /// Checkpoint `i`, counted from the oldest, stands at `start`.
    #[inline(always)]
    pub fn starts_at(&self, i: u8, start: &Tracker) -> bool {
        let at = self.oldest.wrapping_add(i) & SLOT;
        i < self.kept && self.checkpoints[at as usize].start == *start
    }

    /// The server has said something long after the latest segment.
    #[inline(always)]
    pub const fn has_repeated(&self) -> bool {
        self.repeated_ns.saturating_sub(self.last_ns) >= SETTLED_NS
    }

    /// The server has shown that it holds nothing in order that it has not acknowledged: it has said
    /// something long after the latest segment, and no more has come since.
    #[inline(always)]
    pub const fn is_settled(&self, now_ns: u64) -> bool {
        self.has_repeated() && now_ns.saturating_sub(self.repeated_ns) >= FLUSHED_NS
    }

    /// Forget what came from checkpoint `first` on: other bytes take its place, which the server is known
    /// not to have if it has `settled`.
    #[inline(always)]
    pub fn rewind(&mut self, first: u8, settled: bool) {
        let at = self.oldest.wrapping_add(first) & SLOT;
        self.client = self.checkpoints[at as usize].start;
        self.kept = first;
        self.doubted = !settled as u8;
        self.flags |= REWOUND;
        self.trace_anew();
    }

    /// Segments are so many that not each has a checkpoint.
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
            // Another flow may have it; unless it has taken it, it is this one's again with the next trace.
            self.trail = 0;
            (self.mixed, self.pieces) = (0, 0);
        }
    }

    /// Leave a checkpoint for a segment; when the ring is full, the newest one grows over it.
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

    /// Of the newest segment `pings` fewer passed than [`Flow::commit`] was told: the last `over` of them did
    /// not.
    ///
    /// Where others in a merged checkpoint were defused before them, none of them is among those that pass.
    #[inline(always)]
    pub fn take_back(&mut self, pings: u32, over: u32) {
        let checkpoint = self.newest();
        let most = (checkpoint.pings as u32).saturating_sub(over) as u16;
        checkpoint.passed = if checkpoint.passed < most { checkpoint.passed } else { most };
        self.defused += pings as u64;
        self.mixed = 1;
    }
}
