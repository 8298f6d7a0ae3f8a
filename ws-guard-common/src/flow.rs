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
//! its pings passed. A retransmission is walked again from there, and gets the verdict that it got
//! before; nothing is counted twice. One that starts where no checkpoint stands cannot be judged,
//! one with other frames is not believed: both are dropped, and TCP sends again from the
//! acknowledged byte on ([`crate::checkpoint`]).
//! Data behind a gap passes only where a copy of it can be kept ([`crate::held`]), and is dropped
//! otherwise (unless the guard only observes), or the server might acknowledge frames that nobody has
//! seen. If that happens all the same, the flow is [`state::UNSYNCED`] until its stream has proved
//! where frames start.

pub use crate::checkpoint::{
    CHECKPOINTS, Checkpoint, FLUSHED_NS, KNOWN, MERGED, REPLACES, Rewalk, SETTLED, SETTLED_NS,
    UNPROVEN,
};
use crate::{
    flood::ClassWindow,
    maps::{Account, Beginning, SpinLock},
    pace::Hold,
    search::{Candidate, LONGEST, Search},
    seq::{after, before, later},
    tracker::{FROM_CLIENT, IN_MESSAGE, MESSAGE_UNKNOWN, RECORDS, RSV1_AGREED, Tracker, Walk},
    verifier::forget,
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
    /// Reset, or the client's FIN was acknowledged: nothing more is expected, see [`Flow::reopen`](super::Flow::reopen).
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

/// Whose programs follow a flow.
pub mod owner {
    /// The first client-side program that sees it makes it its own.
    pub const NOBODY: u8 = 0;
    /// Those on interfaces that clients come in through.
    pub const UPLINK: u8 = 1;
    /// Those on the host's side of pods' interfaces.
    pub const POD: u8 = 2;
}

/// Whether a connection is paced: [`Flow::paced`].
pub mod paced {
    pub const NO: u16 = 0;
    /// While it is over the limit.
    pub const YES: u16 = 1;
    /// No longer; the next segment of the server ends it.
    pub const ENDING: u16 = 2;
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
/// The next segment takes the place of others that the server never acknowledged.
pub const REWOUND: u8 = 1 << 5;
/// The server ended the connection: nothing that the client sends is read any more.
pub const SERVER_DONE: u8 = 1 << 7;
/// The stream was joined in the middle, where frames seemed to begin.
pub const JOINED: u8 = 1 << 6;

/// A flow whose client was silent for so long may make room for others, nanoseconds.
pub const IDLE_NS: u64 = 300_000_000_000;

/// Bytes of a client out of step that pass before it has to let the server answer: see
/// [`Flow::may_pass_unread`]. About what a TCP may have under way at first (RFC 6928).
pub const UNREAD: u32 = 16 * 1024;
/// A server that has room and says nothing for so long has nothing to say, milliseconds.
pub const QUIET_MS: u32 = 8;
/// Room for some pongs, as the header of a TCP segment has it: scaled by nobody knows what.
pub const ROOM: u32 = 64;

/// How many bytes an acknowledgement of the client may lie behind its latest: as large a window as a
/// client offers. (Linux believes what lies within the largest that it has offered.)
pub const OLDEST_ACK: u32 = 16 << 20;
/// And how many before the byte that the flow began with: what comes again of the handshake.
pub const BEFORE_FLOW: u32 = 64 * 1024;

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
    /// The server's bytes up to here were sent, its FIN included.
    pub server_high: u32,
    /// The latest of them that the client acknowledged.
    pub client_ack: u32,
    /// Index of the oldest checkpoint.
    pub oldest: u8,
    /// How many checkpoints there are.
    pub kept: u8,
    /// One of [`state`].
    pub state: u8,
    /// [`FIN_SEEN`], [`GAP`], [`DEFLATE`], [`REQUEST_UNSEEN`], [`HOLE`], [`REWOUND`], [`JOINED`],
    /// [`SERVER_DONE`].
    pub flags: u8,
    /// One of [`owner`].
    pub owner: u8,
    /// Not 0: some ping that the server has not acknowledged was defused.
    pub mixed: u8,
    /// Not 0: of what the server has not acknowledged, pieces came again that begin and end anywhere.
    pub pieces: u8,
    /// Not 0: the segment that is committed next took the place of others, of which the server may hold
    /// any; behind it nobody knows where frames begin.
    pub doubted: u8,
    /// Not 0: segments behind a gap were let through, and are kept ([`crate::held`]).
    pub held: u8,
    /// How many [traces](crate::trail) there are of headers that the server has not acknowledged.
    pub traces: u16,
    /// The trail that they are in: its number and 1, or 0.
    pub trail: u16,
    /// The number that the next trace gets.
    pub next_trace: u32,
    /// Each header from here on is traced.
    pub traced_from: u32,
    /// The oldest acknowledgement that a segment of the client may carry.
    pub oldest_ack: u32,
    /// While unsynced: where the next header may be.
    pub candidate: Candidate,
    /// Pings that only their pongs told of.
    pub witnessed: u32,
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
    /// When the server last said something and had no more to acknowledge, the same clock.
    pub repeated_ns: u64,
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
    /// Over the limit until then, nanoseconds of CLOCK_MONOTONIC; 0 for never.
    pub over_until: u64,
    /// Segments dropped because of that, but for those added to the source's already.
    pub dropped: u64,
    /// Who its limits are about.
    pub account: Account,
    /// The [`crate::maps::Policy::generation`] that [`Flow::drops`] and [`Flow::paced`] were found
    /// under.
    pub over_generation: u32,
    /// Where the connection began; zeros where nobody saw that.
    pub began: Beginning,
    /// Bytes that passed unread since they may: [`Flow::may_pass_unread`].
    pub unread: u32,
    /// The server's bytes up to here were sent when they last began to count...
    pub unread_high: u32,
    /// ...at that time, milliseconds modulo 2^32...
    pub unread_ms: u32,
    /// ...when [`Flow::witnessed`] was so many.
    pub unread_witnessed: u32,
    /// Not 0: while the connection is over the limit its segments are dropped.
    pub drops: u16,
    /// One of [`paced`]: read for each segment of the server.
    pub paced: u16,
    /// The window that is held while the connection is paced.
    pub hold: Hold,
    /// Frames that are no pings, where their classes have limits.
    pub classes: ClassWindow,
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
    /// The flow is unsynced: see whether frames begin here.
    Search = 5,
}

/// [`Flow::plan`]'s answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub action: Action,
    /// For a rewalk: the checkpoint to start from, counted from the oldest.
    pub checkpoint: u8,
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
        self.server_high = server_next;
        self.client_ack = server_next;
        self.oldest_ack = server_next.wrapping_sub(BEFORE_FLOW);
        self.traced_from = client_next;
        self.state = state::OPEN;
        self.flags = flags;
        self.held = 0;
        self.opened_ns = now_ns;
        self.last_ns = now_ns;
    }

    /// A flow that the server's ServerHello opened, at its acknowledgement number: records are followed,
    /// the client's alone. `client` is where its stream stands as far as it was followed; otherwise see
    /// [`Flow::open`], with [`REQUEST_UNSEEN`] where it was not.
    #[inline(always)]
    pub fn open_records(
        &mut self,
        client: Tracker,
        acked: u32,
        server_next: u32,
        flags: u8,
        now_ns: u64,
    ) {
        self.open(acked, server_next, flags, now_ns);
        let mark = self.client.mark;
        self.client = client;
        self.client.mark = mark;
        self.client.flags = FROM_CLIENT | RECORDS;
        self.server.flags = RECORDS;
        self.traced_from = self.client.next;
    }

    /// Records are followed, not frames.
    #[inline(always)]
    pub const fn in_records(&self) -> bool {
        self.client.in_records()
    }

    /// An acknowledgement in a segment of the client is one that the server accepts (RFC 5961, 5.2):
    /// somebody who does not see the connection has to guess it beside the sequence number, or the
    /// server throws the segment away.
    ///
    /// On the old side that is the largest window that the client has offered, of which the guard does
    /// not know the scale: so [`OLDEST_ACK`], but nothing that was acknowledged before the flow began.
    #[inline(always)]
    pub fn is_credible(&self, ack: u32) -> bool {
        !after(ack, self.server_high) && !before(ack, self.oldest_ack)
    }

    /// A credible segment of the client acknowledges that much. Plain words, written by this side only.
    #[inline(always)]
    pub fn hear(&mut self, ack: u32) {
        self.client_ack = later(self.client_ack, ack);
        self.oldest_ack = later(self.oldest_ack, self.client_ack.wrapping_sub(OLDEST_ACK));
    }

    /// What to do with the client's segment of `len` payload bytes at `seq`. Changes nothing.
    #[inline(always)]
    pub fn plan(&self, seq: u32, len: u32) -> Plan {
        let cursor = self.client.resume();
        let end = seq.wrapping_add(len);
        let plan = |action| Plan { action, checkpoint: 0 };
        if self.state == state::UNSYNCED {
            return plan(Action::Search);
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
        let hole = self.flags & HOLE != 0 || after(seq, self.high);
        let full = hole && self.kept >= CHECKPOINTS as u8;
        plan(if full { Action::NoCheckpoint } else { Action::Walk })
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
        self.mixed |= (passed < walk.pings) as u8;
        self.violations += walk.violations as u64;
        self.coalesced_segments += walk.coalesces() as u64;
        self.split_headers += walk.splits_header(before_walk) as u64;
        self.split_frames += walk.splits_frame() as u64;
        self.keep(before_walk, walk, passed);
        let wrong = self.is_uncertain() && (walk.violations > 0 || walk.claims_more_than(LONGEST));
        if wrong | (self.doubted != 0) {
            self.lose_step();
        }
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
        self.forget(ack);
        let closed = self.state == state::CLOSED;
        if self.flags & FIN_SEEN != 0 && ack == self.fin.wrapping_add(1) {
            self.state = state::CLOSED;
            return if closed { Acknowledged::Fine } else { Acknowledged::Closed };
        }
        // A closed flow that the server goes on with was not closed.
        if self.state != state::UNSYNCED && after(ack, self.client.resume()) {
            self.lose_step();
            return Acknowledged::Unsynced;
        }
        Acknowledged::Fine
    }

    /// Frames went by unseen.
    #[inline(always)]
    pub fn lose_step(&mut self) {
        self.state = state::UNSYNCED;
        self.doubted = 0;
        self.unsynced_total += 1;
        self.candidate = Candidate::default();
        self.kept = 0;
        self.trace_anew();
        self.held = 0;
        self.flags &= !GAP;
        self.unread_high = self.server_high;
    }

    /// A segment of `len` bytes passes although nobody knows where frames begin in it: at most
    /// [`UNREAD`] bytes, and what is left of a segment, do before the client lets the server answer.
    /// `ack` and `window` are the segment's.
    ///
    /// Pongs tell of pings that nobody saw, if they come to pass: who has no room for them, or
    /// acknowledges nothing, keeps them back. So they begin to count anew when the client has taken
    /// something that the server has said since and no pong that nobody asked for is in it, or when there
    /// was room and the server has kept quiet.
    #[inline(always)]
    pub fn may_pass_unread(&mut self, ack: u32, window: u32, len: u32, now_ms: u32) -> bool {
        let told = self.witnessed != self.unread_witnessed;
        let taken = after(ack, self.unread_high);
        let waited = now_ms.wrapping_sub(self.unread_ms) >= QUIET_MS;
        let quiet = waited && ack == self.server_high && window >= ROOM;
        if taken || quiet {
            self.unread = if told { self.unread } else { 0 };
            self.unread_high = self.server_high;
            self.unread_witnessed = self.witnessed;
            self.unread_ms = now_ms;
        }
        // Records have no pongs.
        let may = self.unread < UNREAD || self.in_records();
        self.unread = self.unread.saturating_add(if may { len } else { 0 });
        may
    }

    /// A search for frames in the segment of `len` payload bytes at `seq`, while unsynced.
    #[inline(always)]
    pub fn search(&self, seq: u32, len: u32) -> Search {
        Search::new(self.candidate, seq, len).of_records(self.in_records())
    }

    /// A search came to its end. `true` when frames were found: the flow is open again, and the
    /// segment is to be walked from where they begin.
    #[inline(always)]
    pub fn searched(&mut self, search: &Search) -> bool {
        let Some(next) = search.proven() else {
            self.candidate = search.known();
            return false;
        };
        self.join(next);
        true
    }

    /// Follow the client's frames from sequence number `next` on, in the middle of the stream.
    #[inline(always)]
    pub fn join(&mut self, next: u32) {
        let flags = self.client.flags & !IN_MESSAGE | MESSAGE_UNKNOWN;
        let mark = self.client.mark;
        self.client = Tracker::new(next, flags);
        self.client.mark = mark;
        self.high = next;
        self.state = state::OPEN;
        self.flags = self.flags & !(GAP | HOLE | REWOUND) | JOINED;
        self.kept = 0;
        self.trace_anew();
        self.held = 0;
    }

    /// Where frames begin was concluded from their looks: it may be wrong, and it may be a trick.
    ///
    /// So are records always: a peer ends the connection at a header that is none.
    #[inline(always)]
    pub const fn is_uncertain(&self) -> bool {
        self.flags & (JOINED | REQUEST_UNSEEN) != 0 || self.in_records()
    }

    /// What opened the flow may have been text in the body of an answer: the server does not speak
    /// WebSocket if it speaks HTTP where a frame of its should begin.
    #[inline(always)]
    pub const fn may_be_http(&self) -> bool {
        self.flags & REQUEST_UNSEEN != 0
    }

    /// The server's SYN-ACK, with its first byte at `seq`, says again how this connection began, as it
    /// does while the client keeps silent (RFC 7413). Once the server has acknowledged more it does not.
    #[inline(always)]
    pub const fn begins_again(&self, seq: u32, ack: u32) -> bool {
        let began = &self.began;
        seq == began.server_next && ack == began.client_next && ack == self.acked
    }

    /// The server has sent more pongs than it was sent pings: pings that nobody saw, so many more
    /// than at the last call.
    ///
    /// Only where frames were not followed from the first one on: a server may send pongs unasked
    /// (RFC 6455, 5.5.3).
    #[inline(always)]
    pub fn unseen_pings(&mut self) -> u32 {
        let seen = self.pings_in.wrapping_sub(self.defused) + self.witnessed as u64;
        let asks = self.state == state::UNSYNCED || self.is_uncertain();
        if !asks || self.pongs_out <= seen {
            return 0;
        }
        let unseen = (self.pongs_out - seen) as u32;
        self.witnessed = self.witnessed.wrapping_add(unseen);
        if self.state == state::OPEN {
            self.lose_step();
        }
        unseen
    }

    /// A RST of the client at `seq`. It ends the connection only at the server's exact next byte
    /// (RFC 5961, 3.2); anything else the server ignores, and so must we.
    ///
    /// Even then the server may have thrown it away, for a bad checksum for one: should more data
    /// come, [`Flow::reopen`].
    #[inline(always)]
    pub fn client_reset(&mut self, seq: u32) -> bool {
        let ends = seq == self.acked && self.state != state::CLOSED;
        if ends {
            self.state = state::CLOSED;
        }
        ends
    }

    /// Whether the flow protects nothing any more, `silent_ns` after the client's last data: the
    /// server ended the connection, or nobody has used it for long. That the *client* ended it is
    /// not enough: see [`Flow::reopen`]. Only asked where there is no room.
    #[inline(always)]
    pub const fn is_over(&self, silent_ns: u64) -> bool {
        let ended = self.state == state::CLOSED && self.flags & SERVER_DONE != 0;
        ended || silent_ns > IDLE_NS
    }

    /// New data, up to `end`, of a client that was thought to be gone: it is followed as before, or a
    /// RST or FIN that only the guard believed would be a free pass; out of step where it was so before.
    /// `false` when it is old.
    #[inline(always)]
    pub fn reopen(&mut self, end: u32) -> bool {
        let goes_on = after(end, self.acked);
        if goes_on {
            self.state = state::OPEN;
            self.flags &= !FIN_SEEN;
            if after(self.acked, self.client.resume()) {
                self.lose_step();
            }
        }
        goes_on
    }

    /// The connection went over the limit: it is so until `until`. `true` when it was not before.
    #[inline(always)]
    pub fn exceeds(&mut self, now: u64, until: u64) -> bool {
        let new = self.over_until <= now;
        self.over_until = if until > self.over_until { until } else { self.over_until };
        new
    }

    /// What is done about that, by the policy of `generation`. `true` when the connection is paced from
    /// now on.
    #[inline(always)]
    pub fn treat(&mut self, drops: bool, paces: bool, generation: u32, now_ms: u32) -> bool {
        self.drops = drops as u16;
        self.over_generation = generation;
        let begins = paces && self.paced == paced::NO;
        if begins {
            self.hold.begin(now_ms, self.high, self.frames_in as u32);
        }
        let otherwise = if self.paced == paced::NO { paced::NO } else { paced::ENDING };
        self.paced = if paces { paced::YES } else { otherwise };
        begins
    }

    /// Its window is to be held now.
    #[inline(always)]
    pub const fn is_paced(&self, now: u64) -> bool {
        self.paced == paced::YES && self.is_over_limit(now)
    }

    /// Over the limit now.
    #[inline(always)]
    pub const fn is_over_limit(&self, now: u64) -> bool {
        self.over_until > now
    }

    /// How many of the next `pings` keep to the connection's share.
    #[inline(always)]
    pub fn share_room(&self, now_ms: u32, share: u32, window_ms: u32, pings: u32) -> u32 {
        if share == 0 {
            return 0;
        }
        let rate = Rate { limit: share, window_ms, shift: 0 };
        forget(self.window.room(now_ms, rate, pings), now_ms)
    }

    /// Log the pings of a segment against this connection's own limit, and return how many of them
    /// keep to it.
    #[inline(always)]
    pub fn charge(&mut self, now_ms: u32, rate: Rate, pings: u32) -> u32 {
        forget(self.window.charge(now_ms, rate, pings), now_ms)
    }
}
