//! State of one connection: the value of the flow table.
//!
//! # What is certain and what is provisional
//!
//! The guard sees segments before the server's TCP does, and the server discards some: a bad
//! checksum, an old timestamp, data outside its window. What the server *took* is known only from
//! its acknowledgements, which pass through TC egress.
//!
//! ```text
//!   certain            provisional                     never seen
//! ──────────────┬────────────┬────────────┬──────┬───────────────────▶ sequence numbers
//!             acked     trace   trace   trace     client.next (cursor)
//! ```
//!
//! The cursor is the sequence number of the next header. Each header that the server has not
//! acknowledged leaves a [trace](crate::trail). A retransmission is walked again from where the stream
//! stood at its first byte, and gets the same verdict as before; nothing is counted twice. One with
//! other frames is not trusted: it is dropped, and TCP retransmits from the acknowledged byte on
//! ([`crate::ledger`]). Out-of-order segments pass only where a copy of them can be kept
//! ([`crate::out_of_order`]), and are dropped otherwise (unless the guard only observes), or the server
//! might acknowledge unseen frames. If that happens all the same, the flow is [`state::UNSYNCED`]
//! until its stream has proved where frames start.

mod ends;
mod limits;

pub use self::ends::{LINGER_MS, Reset};
pub use crate::ledger::{FLUSHED_NS, SETTLED_NS, STALLED_NS};
use crate::{
    flood::ClassWindow,
    ledger::{Interval, RING},
    maps::{Account, Beginning, FAR, SpinLock},
    offer::{self, Shut, unread},
    pace::Hold,
    search::{Candidate, LONGEST, Search},
    seq::{after, before, later},
    source::{elapsed_ms, millis},
    tracker::{FROM_CLIENT, IN_MESSAGE, MESSAGE_UNKNOWN, RECORDS, RSV1_AGREED, Tracker, Walk},
    trail::Trace,
    verifier::forget,
    window::RateWindow,
};

/// States of a flow.
pub mod state {
    /// A handshake was seen, its answer not yet.
    pub const HANDSHAKE: u8 = 0;
    /// Every frame is followed.
    pub const OPEN: u8 = 1;
    /// The server acknowledged unseen bytes: frames were missed.
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

/// Owner of a flow: the programs that follow it.
pub mod owner {
    /// No owner: the first client-side program that sees the flow claims it.
    pub const NOBODY: u8 = 0;
    /// Programs on the uplink, where clients' packets arrive.
    pub const UPLINK: u8 = 1;
    /// Programs on the host's side of pods' interfaces.
    pub const POD: u8 = 2;
}

/// Pacing state of a connection: [`Flow::paced`].
pub mod paced {
    pub const NO: u16 = 0;
    /// While it is over the limit.
    pub const YES: u16 = 1;
    /// No longer; the server's next segment ends it.
    pub const ENDING: u16 = 2;
}

/// Whether a connection was ever over a limit: [`Flow::limited`]. Spares its other fields about limits, which lie
/// in cache lines of their own, to most segments.
pub mod limited {
    /// Unknown: opened by programs that did not keep it.
    pub const UNKNOWN: u8 = 0;
    /// Never over a limit, so neither paced nor dropped.
    pub const NEVER: u8 = 1;
    pub const ONCE: u8 = 2;
}

/// A FIN of the client was seen, at sequence number [`Flow::fin`].
pub const FIN_SEEN: u8 = 1 << 0;
/// A segment past the cursor arrived, and the gap before it is not yet filled.
pub const GAP: u8 = 1 << 1;
/// permessage-deflate was agreed in the handshake.
pub const DEFLATE: u8 = 1 << 2;
/// The request was not seen: the stream is followed from the byte that the server's 101
/// acknowledged.
pub const REQUEST_UNSEEN: u8 = 1 << 3;
/// Payload was skipped before [`Flow::hole`], and the server has yet to acknowledge it.
pub const HOLE: u8 = 1 << 4;
/// The bytes before [`Flow::replaced`] have replaced others that the server never acknowledged.
pub const REPLACED: u8 = 1 << 5;
/// The server ended the connection and no longer reads what the client sends.
pub const SERVER_DONE: u8 = 1 << 7;
/// Midstream pickup, where frames seemed to begin.
pub const JOINED: u8 = 1 << 6;

/// Value of [`Flow::format`]. Programs before schema 15 kept a number below 8 in its first byte, and in
/// the second one 0 where nothing was provisional.
pub const LEDGER: u16 = 0x00FF;

/// Bits of [`Flow::hidden`].
pub mod hidden {
    /// What passed before the first frame was not read completely, so that frames may begin elsewhere.
    pub const FRAMES: u8 = 1 << 0;
    /// The server has sent its FIN.
    pub const SERVER_FIN: u8 = 1 << 1;
    /// The client has sent one that the server may have taken.
    pub const CLIENT_FIN: u8 = 1 << 2;
    /// The server may have no such connection any more: [`Flow::is_gone`](super::Flow::is_gone).
    pub const GONE: u8 = 1 << 3;
    /// All that say how it has ended.
    pub const ENDS: u8 = SERVER_FIN | CLIENT_FIN | GONE;
}

/// Value of [`Flow::ended`]. No small number: programs before schema 12 kept the time of a ping there.
pub const ENDED: u32 = 0xE4DE_D0E5;

/// Silence of a client after which its flow may make room for others, ns.
pub const IDLE_NS: u64 = 300_000_000_000;

/// Bytes of an out-of-sync client that pass before it has to let the server answer, see
/// [`Flow::pass_unread`]: about the initial window of a TCP (RFC 6928).
pub const UNREAD: u32 = 16 * 1024;
/// The same of a [hidden](Flow::hidden) client: its frames are followed, unless they begin elsewhere.
pub const HIDDEN: u32 = 1 << 20;
/// Longest frame of a server that is believed where the flow may have been opened by text in an answer: in a
/// longer one many pongs would be hidden.
pub const LONGEST_UNSEEN: u32 = 64 * 1024;
/// Distance of the furthest frames that are found out of sync, from what the server has acknowledged: what passes
/// unread until then, and a segment.
const FURTHEST_FOUND: i32 = 0xFFFF + UNREAD as i32;
/// Pongs without a ping of such a client that are taken for a server's own (RFC 6455, 5.5.3).
const SPARE_PONGS: u64 = 8;
/// Silence of a server with room to send after which it has nothing to send, ms.
pub const QUIET_MS: u32 = 8;
/// Window with room for a segment of pongs: TCP sends nothing of one that does not fit.
pub const ROOM: u32 = 4096;

/// Maximum lag of a client's acknowledgement behind its latest, bytes: the largest window that a
/// client offers. (Linux accepts what is within the largest that it has offered.)
pub const OLDEST_ACK: u32 = 16 << 20;
/// Distance of the furthest data from what the server has acknowledged: more than windows are large. All
/// that the flow remembers is within 2^31 bytes then, the half of sequence numbers that can be compared.
pub const FURTHEST_DATA: u32 = 1 << 29;
/// [`OLDEST_ACK`] before the flow's first byte, for retransmissions of the handshake.
pub const BEFORE_FLOW: u32 = 64 * 1024;
/// The value of the flow table.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Flow {
    /// Guards all other fields. (First, so that BTF finds it at the same offset in every build.)
    pub lock: SpinLock,
    /// Random at creation: distinguishes a flow from an older one in the same slot.
    pub generation: u32,
    /// Client to server, followed in XDP.
    pub client: Tracker,
    /// Server to client, followed in TC egress.
    pub server: Tracker,
    /// End of the client's bytes that the server has acknowledged.
    pub acked: u32,
    /// End of the client's bytes that have passed.
    pub high: u32,
    /// Start of the latest segment that skipped payload, when [`HOLE`].
    pub hole: u32,
    /// Sequence number of the client's FIN, when [`FIN_SEEN`].
    pub fin: u32,
    /// End of the server's bytes that were sent, its FIN included.
    pub server_high: u32,
    /// End of those that the client has acknowledged.
    pub client_ack: u32,
    /// [`LEDGER`], or what programs of a schema before 15 have left: [`Flow::adopt`].
    pub format: u16,
    /// One of [`state`].
    pub state: u8,
    /// [`FIN_SEEN`], [`GAP`], [`DEFLATE`], [`REQUEST_UNSEEN`], [`HOLE`], [`REPLACED`], [`JOINED`],
    /// [`SERVER_DONE`].
    pub flags: u8,
    /// One of [`owner`].
    pub owner: u8,
    pub _pad: [u8; 3],
    /// Not 0: out-of-order segments have passed, and are kept ([`crate::out_of_order`]).
    pub held: u8,
    /// Not 0: the client's segments may pass only as [`Flow::pass_unread`] or [`Flow::is_gone`] says: bits of
    /// [`mod@hidden`].
    pub hidden: u8,
    /// Number of [traces](crate::trail) of unacknowledged headers.
    pub traces: u16,
    /// Trail that holds them: its number plus 1, or 0 if they are in [`Flow::ring`].
    pub trail: u16,
    /// One of [`mod@limited`].
    pub limited: u8,
    /// Scale of the client's windows plus 1, as in [`Flow::began`], or 0: read it there. Here because each
    /// segment of the client needs it.
    pub near_scale: u8,
    /// Number of the next trace.
    pub next_trace: u32,
    /// Sequence number from which on each unacknowledged header is traced.
    pub traced_from: u32,
    /// Oldest acceptable acknowledgement in a client's segment.
    pub oldest_ack: u32,
    /// While unsynced: candidate for the next header.
    pub candidate: Candidate,
    /// Unseen pings that only their pongs reveal.
    pub witnessed: u32,
    /// Number of times the flow went out of sync; from the first on, the counters are lower bounds.
    pub unsynced_total: u32,
    /// Latest time from a client's ping to its pong (XDP to TC egress), microseconds; 0 when none was
    /// measured yet.
    pub heartbeat_rtt_us: u32,
    /// Segments past the cursor.
    pub gaps: u32,
    /// The client's latest shut window, without [`ROOM`].
    pub shut: Shut,
    /// Time when the handshake ended, ns of CLOCK_MONOTONIC.
    pub opened_ns: u64,
    /// Time of the client's latest segment with payload, the same clock, read once a tick.
    pub last_ns: u64,
    /// Time when the server last sent a segment without a new acknowledgement, the same clock.
    pub repeated_ns: u64,
    /// Time of the server's latest segment with payload, milliseconds modulo 2^32; behind its FIN, that of its latest
    /// new acknowledgement.
    pub server_ms: u32,
    /// [`ENDED`] once the first sign of its end was counted.
    pub ended: u32,
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
    /// Client frames with a header split across segments.
    pub split_headers: u64,
    /// Client frames split across segments, in the header or after it.
    pub split_frames: u64,
    /// Frames of either side with a header that violates RFC 6455.
    pub violations: u64,
    /// Traces of unacknowledged headers, unless they are in a trail.
    pub ring: [Trace; RING],
    /// End of the latest segment with a header, or what the server has acknowledged.
    pub provisional: u32,
    /// End of the bytes that replaced others, when [`REPLACED`].
    pub replaced: u32,
    /// Unacknowledged bytes among which pings were defused.
    pub defused_pings: Interval,
    /// Spare, as large as what programs before schema 15 kept here.
    pub _spare: [u32; 28],
    /// The pings of this connection.
    pub window: RateWindow,
    /// End of being over the limit, ns of CLOCK_MONOTONIC; 0 for never.
    pub over_until: u64,
    /// Segments dropped because of that, without those already added to the source's.
    pub dropped: u64,
    /// Client and source for its limits.
    pub account: Account,
    /// [`crate::maps::Policy::generation`] of [`Flow::drops`] and [`Flow::paced`].
    pub over_generation: u32,
    /// Beginning of the connection; zeros where it was not seen.
    pub began: Beginning,
    /// Bytes passed unread since the last reset: [`Flow::pass_unread`].
    pub unread: u32,
    /// [`Flow::server_high`] at that reset...
    pub unread_high: u32,
    /// ...its time, milliseconds modulo 2^32...
    pub unread_ms: u32,
    /// ...and [`Flow::witnessed`] then.
    pub unread_witnessed: u32,
    /// Not 0: while the connection is over the limit its segments are dropped.
    pub drops: u16,
    /// One of [`paced`]: read for each segment of the server.
    pub paced: u16,
    /// Held window, while the connection is paced.
    pub hold: Hold,
    /// Other frames than pings, where their classes have limits.
    pub classes: ClassWindow,
}

/// Treatment of a client's segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// No header to read: payload, or bytes that the server already has.
    Pass = 0,
    /// Walk it from the cursor.
    Walk = 1,
    /// Walk it again.
    Rewalk = 2,
    /// It starts past the cursor.
    Gap = 3,
    /// It has provisional headers that are not traced.
    Untraced = 4,
    /// The flow is unsynced: search for frames.
    Search = 5,
}

/// Result of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// It is old, or as expected.
    Fine,
    /// The server has taken unseen bytes.
    Unsynced,
    /// The server has taken the client's FIN: nothing more follows.
    Closed,
}

impl Flow {
    /// Open a flow at the server's 101: client frames start at `client_next`, server frames at
    /// `server_next`. `flags` is [`DEFLATE`] and [`REQUEST_UNSEEN`] or neither. Set
    /// [`Flow::generation`] first: it is the secret that the client's [`Tracker::mark`] starts
    /// from.
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
        self.state = state::OPEN;
        self.flags = flags;
        self.format = LEDGER;
        self.trace_anew();
        self.held = 0;
        self.hidden = 0;
        self.limited = limited::NEVER;
        self.opened_ns = now_ns;
        self.last_ns = now_ns;
        self.server_ms = millis(now_ns);
    }

    /// Open a flow at the server's ServerHello, from its acknowledgement number: of the client's
    /// stream the records are followed. `client` is its tracker as far as it was followed;
    /// otherwise as [`Flow::open`], with [`REQUEST_UNSEEN`] where it was not.
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
    }

    /// Take over how the connection began.
    #[inline(always)]
    pub const fn begins_as(&mut self, began: Beginning) {
        self.began = began;
        self.near_scale = began.client_scale.wrapping_add(1);
    }

    /// Check whether records are followed, not frames.
    #[inline(always)]
    pub const fn in_records(&self) -> bool {
        self.client.in_records()
    }

    /// Check whether the server accepts an acknowledgement by the client (RFC 5961, 5.2). An
    /// off-path attacker has to guess it in addition to the sequence number, or the server discards
    /// the segment.
    ///
    /// The oldest one accepted depends on the largest window that the client has offered, and the
    /// guard does not know its scale: so [`OLDEST_ACK`], but nothing acknowledged before the flow
    /// began.
    #[inline(always)]
    pub fn is_credible(&self, ack: u32) -> bool {
        !after(ack, self.server_high) && !before(ack, self.oldest_ack)
    }

    /// Check whether data at `seq` is further from what the server has acknowledged than any window reaches:
    /// the server discards it.
    #[inline(always)]
    pub const fn is_out_of_reach(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.acked) as i32 > FURTHEST_DATA as i32
    }

    /// Take over the acknowledgement of a client's credible segment.
    /// Plain words, written by this side only.
    #[inline(always)]
    pub fn hear(&mut self, ack: u32) {
        self.client_ack = later(self.client_ack, ack);
        self.oldest_ack = later(self.oldest_ack, self.client_ack.wrapping_sub(OLDEST_ACK));
    }

    /// Take over the `window` of a client's credible segment, as in a TCP header.
    /// A plain word, written by this side only.
    #[inline(always)]
    pub fn offers(&mut self, seq: u32, window: u32) {
        let room = self.has_room(window);
        if (!room || self.shut.is_some()) && seq.wrapping_sub(self.acked) <= FAR {
            self.shut.offers(seq, room);
        }
    }

    /// Plan the treatment of the client's segment of `len` payload bytes at `seq`. Changes nothing.
    #[inline(always)]
    pub fn plan(&self, seq: u32, len: u32) -> Action {
        let cursor = self.client.resume();
        let end = seq.wrapping_add(len);
        if self.state == state::UNSYNCED {
            return Action::Search;
        }
        if after(seq, cursor) {
            return Action::Gap;
        }
        if before(later(seq, self.acked), self.provisional) && after(end, self.acked) {
            return if self.may_repeat(seq, end) { Action::Rewalk } else { Action::Untraced };
        }
        if after(end, cursor) { Action::Walk } else { Action::Pass }
    }

    /// Record that the segment of `len` payload bytes at `seq` passes.
    #[inline(always)]
    pub fn let_through(&mut self, seq: u32, len: u32) {
        if after(seq, self.high) {
            self.hole = seq;
            self.flags |= HOLE;
        }
        self.high = later(self.high, seq.wrapping_add(len));
    }

    /// Commit a finished walk: `passed` of its new pings pass unchanged.
    #[inline(always)]
    pub fn commit(&mut self, before_walk: &Tracker, walk: &Walk, passed: u32) {
        self.let_through(walk.base(), walk.len());
        self.flags &= !GAP;
        // A retransmission may end earlier in a split header than the first transmission.
        if !after(walk.tracker.resume(), before_walk.resume()) {
            return;
        }
        self.client = walk.tracker;
        self.frames_in += walk.frames as u64;
        self.pings_in += walk.pings as u64;
        self.pongs_in += walk.pongs as u64;
        self.defused += walk.pings.wrapping_sub(passed) as u64;
        self.violations += walk.violations as u64;
        self.coalesced_segments += walk.coalesces() as u64;
        self.split_headers += walk.splits_header(before_walk) as u64;
        self.split_frames += walk.splits_frame() as u64;
        self.keep(walk, passed);
        if self.is_uncertain() && (walk.violations > 0 || walk.claims_more_than(LONGEST)) {
            self.lose_step();
        }
    }

    /// [`Flow::commit`] of a walk that [`Walk::only`] or [`Walk::only_record`] finished: touches no
    /// more of the flow than that can change.
    #[inline(always)]
    pub fn commit_one(&mut self, walk: &Walk, passed: u32) {
        self.let_through(walk.base(), walk.len());
        self.flags &= !GAP;
        (self.client.mark, self.client.next) = (walk.tracker.mark, walk.tracker.next);
        self.frames_in += walk.frames as u64;
        self.pings_in += walk.pings as u64;
        self.pongs_in += walk.pongs as u64;
        if walk.splits_frame() {
            self.split_frames += 1;
        }
        if passed < walk.pings {
            self.defused += 1;
        }
        self.keep(walk, passed);
        if self.is_uncertain() && walk.claims_more_than(LONGEST) {
            self.lose_step();
        }
    }

    /// Take over the server's acknowledgement of the client's bytes up to `ack`.
    #[inline(always)]
    pub fn acknowledge(&mut self, ack: u32) -> Acknowledged {
        if !after(ack, self.acked) {
            return Acknowledged::Fine;
        }
        self.acked = ack;
        if !before(ack, self.hole) {
            self.flags &= !HOLE;
        }
        // Otherwise programs of an earlier schema have not let go of it yet.
        if self.format == LEDGER {
            self.forget(ack);
        }
        let closed = self.state == state::CLOSED;
        // An end would forget that the flow is out of sync, and any segment may have said where it is.
        let ends = self.state != state::UNSYNCED && self.flags & FIN_SEEN != 0;
        if ends && ack == self.fin.wrapping_add(1) {
            self.state = state::CLOSED;
            return if closed { Acknowledged::Fine } else { Acknowledged::Closed };
        }
        // A closed flow on which the server continues was not closed.
        if self.state != state::UNSYNCED && after(ack, self.client.resume()) {
            self.lose_step();
            return Acknowledged::Unsynced;
        }
        Acknowledged::Fine
    }

    /// Mark the flow as unsynced: frames passed unseen.
    #[inline(always)]
    pub fn lose_step(&mut self) {
        self.state = state::UNSYNCED;
        self.unsynced_total += 1;
        self.candidate = Candidate::default();
        self.trace_anew();
        self.held = 0;
        self.flags &= !GAP;
        self.unread_high = self.server_high;
    }

    /// Decide whether a segment of `len` bytes passes while it is unknown where frames begin in it: one
    /// of [`unread`]. `seq`, `ack` and `window` are the segment's, `now` is in milliseconds.
    ///
    /// Pongs reveal unseen pings once they are sent, but a client that offers no window or
    /// acknowledges nothing holds them back. So it passes only with a window in which the server may
    /// answer: at most [`UNREAD`] bytes, and the rest of a segment. That count is reset when the client
    /// has taken something sent since the last reset and it contains no unsolicited pong, or when the
    /// server was silent. Of a hidden one nothing has to be waited for.
    #[inline(always)]
    pub fn pass_unread(&mut self, seq: u32, ack: u32, window: u32, len: u32, now: u32) -> u32 {
        let hidden = self.state != state::UNSYNCED;
        let most = if hidden { HIDDEN } else { UNREAD };
        let told = self.witnessed != self.unread_witnessed;
        let waited = hidden || elapsed_ms(now, self.unread_ms) >= QUIET_MS;
        let taken = after(ack, self.unread_high);
        let quiet = waited && ack == self.server_high;
        let room = self.has_room(window);
        let room = self.shut.offers(seq, room);
        // Nor may it where its 101 may have been text: its pongs are not recognised then.
        let room = room && (hidden || !self.may_be_http());
        // What is behind a gap cannot be answered before the gap is filled: by the segment that the server waits
        // for, which passes, and makes no room for others.
        let behind = self.high.wrapping_sub(self.acked);
        let behind = if behind >> 31 == 0 { behind } else { 0 };
        let (resets, fills) = (room && (taken || quiet), !after(seq, self.acked));
        if resets {
            self.unread = if told { self.unread } else { behind };
            self.unread_high = self.server_high;
            self.unread_witnessed = self.witnessed;
            self.unread_ms = now;
        }
        // Records have no pongs.
        let decided = match self.in_records() {
            true => unread::PASSES,
            false if resets && fills && !told => unread::decide(room, 0, most),
            false => unread::decide(room, self.unread, most),
        };
        self.unread = self.unread.saturating_add(len);
        decided
    }

    /// Check whether a segment at `seq` is further than what passes [unread](Flow::pass_unread) from what the server
    /// waits for. It must not pass, or all before it would count as passed.
    #[inline(always)]
    pub const fn is_past_unread(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.acked) as i32 >= UNREAD as i32 && !self.in_records()
    }

    /// Check whether the server may send a segment into the client's `window`, as in a TCP header.
    #[inline(always)]
    fn has_room(&self, window: u32) -> bool {
        let scale = match self.near_scale {
            0 => self.began.client_scale,
            near => near - 1,
        };
        offer::has_room(window, forget(scale as u32, window) as u8, ROOM)
    }

    /// Record that frames may begin elsewhere than it seems.
    #[inline(always)]
    pub const fn may_hide(&mut self, may: bool) {
        self.hidden = self.hidden & !hidden::FRAMES | may as u8;
        self.unread_high = self.server_high;
    }

    /// Check whether the server may take new bytes from the segment of `len` payload bytes at `seq`.
    #[inline(always)]
    const fn is_near(&self, seq: u32, len: u32) -> bool {
        let ahead = seq.wrapping_sub(self.acked) as i32;
        after(seq.wrapping_add(len), self.acked) && ahead <= FAR as i32
    }

    /// Begin a search for frames in the segment of `len` payload bytes at `seq`, while unsynced. In one
    /// of which the server takes nothing there are none.
    #[inline(always)]
    pub fn search(&self, seq: u32, len: u32) -> Search {
        let near = self.is_near(seq, len);
        let (seq, len) = if near { (seq, len) } else { (self.candidate.next, 0) };
        Search::new(self.candidate, seq, len).of_records(self.in_records())
    }

    /// Take over the result of a search.
    /// `true` when frames were found: the flow is open again, and the segment is to be walked from
    /// where they begin.
    #[inline(always)]
    pub fn searched(&mut self, search: &Search) -> bool {
        match search.proven() {
            // Further on there are bytes that have not passed, and in their place any frames.
            Some(next) if next.wrapping_sub(self.acked) as i32 <= FURTHEST_FOUND => {
                self.join(next);
                true
            }
            _ => {
                self.candidate = search.known();
                false
            }
        }
    }

    /// Pick up the client's frames midstream, from sequence number `next` on.
    #[inline(always)]
    pub fn join(&mut self, next: u32) {
        let flags = self.client.flags & !IN_MESSAGE | MESSAGE_UNKNOWN;
        let mark = self.client.mark;
        self.client = Tracker::new(next, flags);
        self.client.mark = mark;
        // What has passed further on may still be read.
        self.high = later(self.high, next);
        self.state = state::OPEN;
        self.may_hide(true);
        self.flags = self.flags & !(GAP | HOLE) | JOINED;
        self.trace_anew();
        self.held = 0;
    }

    /// Check whether the beginning of frames was inferred from the bytes: it may be wrong, and an
    /// attacker's choice.
    ///
    /// Always so for records: a peer ends the connection at a bad header.
    #[inline(always)]
    pub const fn is_uncertain(&self) -> bool {
        self.flags & (JOINED | REQUEST_UNSEEN) != 0 || self.in_records()
    }

    /// Check whether the server may have read frames elsewhere than where they were followed.
    #[inline(always)]
    pub const fn may_be_unseen(&self) -> bool {
        self.hidden & (hidden::FRAMES | hidden::GONE) != 0
    }

    /// Check whether the flow may have been opened by text in the body of an answer.
    /// If the server sends HTTP where its frame should begin, it does not speak WebSocket.
    #[inline(always)]
    pub const fn may_be_http(&self) -> bool {
        self.flags & REQUEST_UNSEEN != 0
    }

    /// Check whether the server's SYN-ACK, with its first byte at `seq`, is a repetition of this
    /// connection's, as the server sends while the client is silent (RFC 7413). Not once it has
    /// acknowledged more.
    #[inline(always)]
    pub const fn begins_again(&self, seq: u32, ack: u32) -> bool {
        let began = &self.began;
        seq == began.server_next && ack == began.client_next && ack == self.acked
    }

    /// Count unseen pings, by which the server's pongs exceed the pings sent to it, since the last
    /// call.
    ///
    /// Only where frames were not followed from the first one on: a server may send unsolicited
    /// pongs (RFC 6455, 5.5.3).
    #[inline(always)]
    pub fn unseen_pings(&mut self) -> u32 {
        let seen = self.pings_in.wrapping_sub(self.defused) + self.witnessed as u64;
        let asks = self.state == state::UNSYNCED || self.is_uncertain() || self.may_be_unseen();
        let sure = self.state == state::OPEN && !self.is_uncertain();
        if !asks || self.pongs_out <= seen + if sure { SPARE_PONGS } else { 0 } {
            return 0;
        }
        let unseen = (self.pongs_out - seen) as u32;
        self.witnessed = self.witnessed.wrapping_add(unseen);
        if self.state == state::OPEN {
            self.lose_step();
        }
        unseen
    }

    /// Time since the latest payload in either direction, ns.
    #[inline(always)]
    pub const fn silent_ns(&self, now: u64) -> u64 {
        let client = now.saturating_sub(self.last_ns);
        // The flow may be younger than the reading of the clock.
        let server = millis(now).wrapping_sub(self.server_ms) as i32;
        let server = if server < 0 { 0 } else { server as u64 * 1_000_000 };
        if client < server { client } else { server }
    }
}
