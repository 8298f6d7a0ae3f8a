//! One connection, as the guard knows it: the value of the flow table.
//!
//! # What is certain and what is provisional
//!
//! The guard sees segments before the server's TCP does, and the server throws some away: a bad
//! checksum, an old timestamp, data outside its window. What the server *took*, only its
//! acknowledgements say, and they pass through TC egress.
//!
//! ```text
//!   certain            provisional                     never seen
//! ──────────────┬────────────┬────────────┬──────┬───────────────────▶ sequence numbers
//!             acked     checkpoint   checkpoint  client.next (cursor)
//! ```
//!
//! The cursor says where the next header starts. Each segment in which a header began since the
//! last acknowledgement leaves a [`Checkpoint`]: where the stream stood before it, and how many of
//! its pings passed. A retransmission that starts where a checkpoint stands is walked again from
//! there, and gets the verdict that it got before; nothing is counted twice. One that starts where
//! none stands cannot be judged and is dropped: TCP sends it again from the acknowledged byte on.
//! Data behind a gap is dropped too (unless the guard only observes), or the server might
//! acknowledge frames that nobody has seen. If that happens all the same, the flow is
//! [`state::UNSYNCED`] until its stream has proved where frames start.

use crate::{
    maps::SpinLock,
    seq::{after, before, later},
    tracker::{FROM_CLIENT, RSV1_AGREED, Tracker, Walk},
    window::{Rate, RateWindow},
};

/// States of a flow.
pub mod state {
    /// A handshake was seen, its answer not yet.
    pub const HANDSHAKE: u8 = 0;
    /// Every frame is followed.
    pub const OPEN: u8 = 1;
    /// The server acknowledged bytes that were never seen: frames were missed.
    pub const UNSYNCED: u8 = 2;
    /// Reset, or the client's FIN was acknowledged.
    pub const CLOSED: u8 = 3;

    /// The name in events and JSON.
    pub const fn name(state: u8) -> &'static str {
        match state {
            HANDSHAKE => "handshake",
            OPEN => "open",
            UNSYNCED => "unsynced",
            _ => "closed",
        }
    }
}

/// A FIN of the client was seen, at sequence number [`Flow::fin`].
pub const FIN_SEEN: u8 = 1 << 0;
/// A segment past the cursor came, and the gap before it is not yet filled.
pub const GAP: u8 = 1 << 1;
/// permessage-deflate was agreed in the handshake.
pub const DEFLATE: u8 = 1 << 2;
/// The request was not seen: the stream was joined where the server's 101 acknowledged it.
pub const REQUEST_UNSEEN: u8 = 1 << 3;
/// Payload was skipped before [`Flow::hole`], and the server has yet to acknowledge it.
pub const HOLE: u8 = 1 << 4;

/// How many segments with headers a flow may have unacknowledged with a checkpoint each.
pub const CHECKPOINTS: usize = 8;
const SLOT: u8 = CHECKPOINTS as u8 - 1;

/// Valid headers in a row after which an unsynced flow is open again. Random bytes look like a
/// valid client header once in about 43 times.
pub const PROOF: u8 = 4;

/// So long after the latest segment that was let through, the server has acknowledged all that it
/// holds in order, nanoseconds. (Linux delays acknowledgements by at most 200 ms.)
pub const SETTLED_NS: u64 = 1_000_000_000;

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
    /// [`MERGED`], [`UNPROVEN`].
    pub flags: u32,
}

/// The checkpoint stands for several segments, and where the stream stood between them is not kept.
pub const MERGED: u32 = 1 << 0;
/// Its start is where a shorter retransmission ended, inside a segment that came before. Whether
/// both were the same, a walk from here will show; until then nothing may reach across.
pub const UNPROVEN: u32 = 1 << 1;

/// The value of the flow table.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Flow {
    /// Guards all that follows. (First, so that BTF finds it in every build at the same place.)
    pub lock: SpinLock,
    /// Random at creation: tells a new flow from the old one in a slot that was used again.
    pub generation: u32,
    /// Client to server, followed in XDP.
    pub client: Tracker,
    /// Server to client, followed in TC egress.
    pub server: Tracker,
    /// The client's bytes up to here were acknowledged by the server.
    pub acked: u32,
    /// The client's bytes up to here were let through.
    pub high: u32,
    /// Where the latest segment began that skipped payload, when [`HOLE`].
    pub hole: u32,
    /// Sequence number of the client's FIN, when [`FIN_SEEN`].
    pub fin: u32,
    /// Index of the oldest checkpoint.
    pub oldest: u8,
    /// How many checkpoints there are.
    pub kept: u8,
    /// One of [`state`].
    pub state: u8,
    /// [`FIN_SEEN`], [`GAP`], [`DEFLATE`], [`REQUEST_UNSEEN`], [`HOLE`].
    pub flags: u8,
    /// While unsynced: valid headers found in a row.
    pub proof: u8,
    pub _pad: [u8; 3],
    /// How often the flow lost step; from the first on, the counters are lower bounds.
    pub unsynced_total: u32,
    /// Latest time from a ping (at XDP) to the pong that answers it (at TC egress), microseconds;
    /// 0 when none was measured yet.
    pub heartbeat_rtt_us: u32,
    /// Segments that came with a gap before them.
    pub gaps: u32,
    /// When the handshake ended, nanoseconds of CLOCK_MONOTONIC.
    pub opened_ns: u64,
    /// When the client's latest segment with payload came, the same clock (coarse).
    pub last_ns: u64,
    /// When the ping that waits for its pong came, the same clock; 0 when none waits.
    pub ping_ns: u64,
    /// Frames that began in the client's stream.
    pub frames_in: u64,
    /// PING frames among them.
    pub pings_in: u64,
    /// PONG frames among them.
    pub pongs_in: u64,
    /// Frames that began in the server's stream.
    pub frames_out: u64,
    /// PONG frames among them.
    pub pongs_out: u64,
    /// Pings that reached the server as pongs.
    pub defused: u64,
    /// Client segments in which more than one frame began.
    pub coalesced_segments: u64,
    /// Client frames whose header a segment border cut.
    pub split_headers: u64,
    /// Client frames that a segment border cut, in the header or behind it.
    pub split_frames: u64,
    /// Frames of either side with a header that violates RFC 6455.
    pub violations: u64,
    /// Segments with headers that wait for their acknowledgement, a ring.
    pub checkpoints: [Checkpoint; CHECKPOINTS],
    /// The pings of this connection.
    pub window: RateWindow,
}

/// What is to be done with a segment of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Nothing in it that has to be looked at: payload, or bytes the server already has.
    Pass = 0,
    /// Walk it from the cursor.
    Walk = 1,
    /// Walk it again from a checkpoint.
    Rewalk = 2,
    /// It starts past the cursor.
    Gap = 3,
    /// It holds provisional headers, and there is no checkpoint to judge them from.
    NoCheckpoint = 4,
    /// The flow is unsynced: see whether headers start here.
    Probe = 5,
}

/// [`Flow::plan`]'s answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub action: Action,
    /// For a rewalk: the checkpoint, counted from the oldest.
    pub checkpoint: u8,
    /// Where the walk starts.
    pub start: Tracker,
}

/// What an acknowledgement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// It is old, or moves things on as expected.
    Fine,
    /// The server has taken bytes that were never seen.
    Unsynced,
    /// The server has taken the client's FIN: nothing more can come from it.
    Closed,
}

/// What a rewalk may let pass, from [`Flow::rewalk_budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewalk {
    /// The same frames as before: so many pings pass.
    Same(u32),
    /// Other bytes than before, in place of all that the server has not acknowledged, long after it
    /// would have: they count as new.
    New,
    /// Other bytes than before, and the server may hold some of those.
    Refuse,
}

impl Flow {
    /// A flow that the server's 101 opened: client frames start at `client_next`, server frames at
    /// `server_next`. `flags` is [`DEFLATE`] and [`REQUEST_UNSEEN`] or neither. Set
    /// [`Flow::generation`] first: it is the secret that the client's [`Tracker::mark`] starts from.
    #[inline(always)]
    pub fn open(&mut self, client_next: u32, server_next: u32, flags: u8, now_ns: u64) {
        let rsv1 = if flags & DEFLATE != 0 { RSV1_AGREED } else { 0 };
        self.client = Tracker::new(client_next, FROM_CLIENT | rsv1);
        self.client.mark = self.generation;
        self.server = Tracker::new(server_next, rsv1);
        self.acked = client_next;
        self.high = client_next;
        self.state = state::OPEN;
        self.flags = flags;
        self.opened_ns = now_ns;
        self.last_ns = now_ns;
    }

    /// Sequence number behind the newest of the kept checkpoints' segments.
    #[inline(always)]
    fn provisional_end(&self) -> u32 {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        self.checkpoints[newest as usize].end
    }

    /// What to do with the client's segment of `len` payload bytes at `seq`. Changes nothing.
    #[inline(always)]
    pub fn plan(&self, seq: u32, len: u32) -> Plan {
        let start = self.client;
        let cursor = start.resume();
        let end = seq.wrapping_add(len);
        let plan = |action| Plan { action, checkpoint: 0, start };
        if self.state == state::UNSYNCED {
            let inside_frame = self.proof > 0 && !after(end, cursor);
            return plan(if inside_frame { Action::Pass } else { Action::Probe });
        }
        if after(seq, cursor) {
            return plan(Action::Gap);
        }
        if self.kept > 0 && before(seq, self.provisional_end()) && after(end, self.acked) {
            return self.plan_rewalk(seq, end);
        }
        if !after(end, cursor) {
            return plan(Action::Pass);
        }
        // What fills a hole must not come to lie inside a merged checkpoint.
        let full = self.kept >= CHECKPOINTS as u8 && self.flags & HOLE != 0;
        plan(if full { Action::NoCheckpoint } else { Action::Walk })
    }

    /// The segment overlaps others with headers that the server has not acknowledged.
    #[inline(always)]
    fn plan_rewalk(&self, seq: u32, end: u32) -> Plan {
        let from = later(seq, self.acked);
        let mut plan = Plan { action: Action::NoCheckpoint, checkpoint: 0, start: self.client };
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
                plan.start = checkpoint.start;
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
    /// `settled`: no segment was let through for [`SETTLED_NS`].
    #[inline(always)]
    pub fn rewalk_budget(&self, first: u8, dry: &Walk, settled: bool) -> Rewalk {
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
        } else if self.may_split(divided, dry) {
            Rewalk::Same(divided.passed as u32)
        } else if settled && first == 0 && !after(self.high, dry.end()) {
            Rewalk::New
        } else {
            Rewalk::Refuse
        }
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
        inside && checkpoint.flags & MERGED == 0 && self.kept < CHECKPOINTS as u8
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

    /// Forget what came from checkpoint `first` on: other bytes take its place.
    #[inline(always)]
    pub fn rewind(&mut self, first: u8) {
        let at = self.oldest.wrapping_add(first) & SLOT;
        self.client = self.checkpoints[at as usize].start;
        self.kept = first;
    }

    /// The segment of `len` payload bytes at `seq` is let through.
    #[inline(always)]
    pub fn let_through(&mut self, seq: u32, len: u32) {
        if after(seq, self.high) {
            self.hole = seq;
            self.flags |= HOLE;
        }
        self.high = later(self.high, seq.wrapping_add(len));
    }

    /// A segment was walked to its end and is let through: `passed` of its new pings as they are.
    #[inline(always)]
    pub fn commit(&mut self, before_walk: &Tracker, walk: &Walk, passed: u32) {
        self.let_through(walk.base(), walk.len());
        self.flags &= !GAP;
        // A retransmission may end earlier in a cut header than what came before.
        if !after(walk.tracker.resume(), before_walk.resume()) {
            return;
        }
        self.client = walk.tracker;
        self.frames_in += walk.frames as u64;
        self.pings_in += walk.pings as u64;
        self.pongs_in += walk.pongs as u64;
        self.defused += walk.pings.wrapping_sub(passed) as u64;
        self.violations += walk.violations as u64;
        self.coalesced_segments += (walk.frames > 1) as u64;
        let new_header = before_walk.carried == 0 || walk.tracker.next != before_walk.next;
        let cut = walk.cuts_key | (walk.tracker.carried != 0 && new_header);
        self.split_headers += cut as u64;
        self.split_frames += (walk.frames > 0 && walk.splits_frame()) as u64;
        self.keep(before_walk, walk, passed);
    }

    /// Leave a checkpoint for a segment; when the ring is full, the newest one grows over it.
    #[inline(always)]
    fn keep(&mut self, start: &Tracker, walk: &Walk, passed: u32) {
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
            checkpoint.flags = 0;
            checkpoint.start = *start;
            checkpoint.begin = walk.base();
            checkpoint.pings = pings;
            checkpoint.passed = passed;
            self.kept += 1;
        }
        checkpoint.end = walk.end();
    }

    /// Fewer pings of the newest segment passed than [`Flow::commit`] was told.
    #[inline(always)]
    pub fn take_back(&mut self, pings: u32) {
        let newest = self.oldest.wrapping_add(self.kept).wrapping_sub(1) & SLOT;
        let checkpoint = &mut self.checkpoints[newest as usize];
        checkpoint.passed = checkpoint.passed.saturating_sub(pings as u16);
        self.defused += pings as u64;
    }

    /// The server acknowledged the client's bytes up to `ack`.
    #[inline(always)]
    pub fn acknowledge(&mut self, ack: u32) -> Acknowledged {
        if !after(ack, self.acked) {
            return Acknowledged::Fine;
        }
        self.acked = ack;
        if !before(ack, self.hole) {
            self.flags &= !HOLE;
        }
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
        if self.flags & FIN_SEEN != 0 && ack == self.fin.wrapping_add(1) {
            self.state = state::CLOSED;
            return Acknowledged::Closed;
        }
        if self.state == state::OPEN && after(ack, self.client.resume()) {
            self.lose_step();
            return Acknowledged::Unsynced;
        }
        Acknowledged::Fine
    }

    /// Frames went by unseen.
    #[inline(always)]
    pub fn lose_step(&mut self) {
        self.state = state::UNSYNCED;
        self.unsynced_total += 1;
        self.proof = 0;
        self.kept = 0;
        self.flags &= !GAP;
    }

    /// Where a probe of the segment at `seq` starts: at the candidate cursor if the segment
    /// reaches it, else at the segment itself.
    #[inline(always)]
    pub fn probe_start(&self, seq: u32, len: u32) -> Tracker {
        let candidate = self.client.resume();
        let reaches = !after(seq, candidate) && before(candidate, seq.wrapping_add(len));
        if self.proof > 0 && reaches {
            self.client
        } else {
            Tracker::new(later(seq, self.acked), self.client.flags & !crate::tracker::IN_MESSAGE)
        }
    }

    /// A probe was walked: `true` when the flow is open again.
    #[inline(always)]
    pub fn probed(&mut self, start: &Tracker, walk: &Walk) -> bool {
        let continued = self.proof > 0 && *start == self.client;
        // Whether a message is open is not known at first: do not hold that against the stream.
        let forgiven =
            walk.by_kind[crate::frame::Violation::UnexpectedContinuation as usize] as u32;
        if walk.violations > forgiven {
            self.proof = 0;
            return false;
        }
        let frames = if walk.frames > 100 { 100 } else { walk.frames as u8 };
        self.proof = if continued { self.proof.saturating_add(frames) } else { frames };
        self.client = walk.tracker;
        self.high = later(self.high, walk.end());
        if self.proof < PROOF {
            return false;
        }
        self.state = state::OPEN;
        self.kept = 0;
        true
    }

    /// A RST of the client at `seq`. It ends the connection only at the server's exact next byte
    /// (RFC 5961, 3.2); anything else the server ignores, and so must we.
    #[inline(always)]
    pub fn client_reset(&mut self, seq: u32) -> bool {
        let ends = seq == self.acked;
        if ends {
            self.state = state::CLOSED;
        }
        ends
    }

    /// Log the pings of a segment against this connection's own limit, and return how many of them
    /// keep to it.
    #[inline(always)]
    pub fn charge(&mut self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        self.window.charge(now_ms, rate, pings)
    }
}
