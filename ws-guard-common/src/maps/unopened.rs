//! Connections without a flow, from their SYN-ACK on: what of a client's bytes has passed, and whether a
//! request for an upgrade may be among them.

mod ends;
mod framing;

use self::framing::Framing;
use crate::{
    chunks::Chunks,
    flow::{hidden, owner},
    offer::{self, Shut, unread},
    pace::scale,
    seq::{after, before, later},
    source::elapsed_ms,
};

/// Beginning of a connection, by the server's SYN-ACK.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Beginning {
    /// Sequence number of the client's first byte.
    pub client_next: u32,
    /// Sequence number of the server's first byte.
    pub server_next: u32,
    /// Scale of the server's windows, encoded as in [`crate::pace::scale`].
    pub scale: u8,
    /// The same of the client's.
    pub client_scale: u8,
    /// [`stamp`]s of the SYN-ACKs so far; none once the server has sent anything else.
    pub stamps: u16,
}

/// Largest difference of a client's and a server's number from those of a SYN-ACK with which they begin a connection.
const OFF: u32 = 8;

/// Treatment of a client's segment that begins with a byte which the server has: [`Beginning::judge_old`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Old {
    Pass = 0,
    Drop = 1,
    /// Pass it with an acknowledgement of [`Beginning::LESS`] bytes less.
    Disarm = 2,
}

impl Beginning {
    /// Bytes less that a segment acknowledges for [`Old::Disarm`]: enough for [`Beginning::is_begun_by`].
    pub const LESS: u32 = 3 * OFF;

    /// Check whether a client's segment may begin a connection by a SYN cookie of the SYN-ACK, or of one that differs in
    /// the client's maximum segment size alone: a cookie is at a fixed distance from the client's number, and those of
    /// four sizes are next to each other (Linux, `net/ipv4/syncookies.c`).
    #[inline(always)]
    pub const fn is_begun_by(&self, seq: u32, ack: u32) -> bool {
        let off =
            seq.wrapping_sub(self.client_next).wrapping_sub(ack.wrapping_sub(self.server_next));
        off.wrapping_add(OFF) <= 2 * OFF
    }

    /// Judge a client's segment of `len` bytes at `seq` that acknowledges `ack`, and begins with a byte which the server
    /// has, of those up to `acked`. Once the connection has ended, it could begin another one.
    ///
    /// On this one the server discards what is empty, unless it is a keep-alive probe (RFC 9293, 3.8.4), and what is
    /// older than [`FAR`]. To other bytes it answers with its own acknowledgement, whatever they acknowledge.
    #[inline(always)]
    pub const fn judge_old(&self, acked: u32, seq: u32, ack: u32, len: u32) -> Old {
        let behind = acked.wrapping_sub(seq);
        if behind > FAR || len == 0 && behind > 1 {
            Old::Drop
        } else if self.is_begun_by(seq, ack) {
            Old::Disarm
        } else {
            Old::Pass
        }
    }

    /// Take over the [`stamp`] that a client's segment echoes: with none of the SYN-ACKs', the client has no scale.
    ///
    /// A server that answers with SYN cookies keeps nothing of the SYN, and takes the scale from there.
    #[inline(always)]
    pub const fn echoes(&mut self, echoed: u16) {
        if echoed & self.stamps == 0 {
            self.client_scale = scale::NONE as u8;
        }
    }
}

/// Stamps: of a timestamp (RFC 7323, 3.2) the bits in which a SYN-ACK with a SYN cookie keeps the scale of the
/// client's windows (Linux, `net/ipv4/syncookies.c`), as one of sixteen bits.
pub mod stamp {
    /// There is no timestamp.
    pub const NONE: u16 = 0;
    const SCALE: u8 = 0xF;

    /// From a timestamp's last byte.
    #[inline(always)]
    pub const fn of(last: u8) -> u16 {
        1 << (last & SCALE)
    }
}

/// Stage of a connection without a flow.
pub mod stage {
    /// The server has sent no data.
    pub const SILENT: u8 = 0;
    /// It has.
    pub const SPOKEN: u8 = 1;
    /// Its 101 was dropped: the client has no answer yet, and nothing to say.
    pub const REFUSED: u8 = 2;
}

/// Connection without a flow, since its beginning: value of [`super::name::BEGINNINGS`].
///
/// The client's bytes are followed far enough to know that nothing has passed ahead of a request.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Unopened {
    pub began: Beginning,
    /// End of the client's bytes that the server has acknowledged.
    pub acked: u32,
    /// The same when the server last sent data: the next request begins there or later.
    pub answered: u32,
    /// End of the client's bytes that passed.
    pub high: u32,
    /// End of the server's bytes that were sent.
    pub server_high: u32,
    /// Generation of the policy under which the connection was followed last, its lower half.
    generation: u16,
    /// [`TURNED`], [`LONG`], [`SERVER_FIN`], [`CLIENT_FIN`], [`GONE`].
    had: u8,
    /// Programs that read the client's bytes, one of [`owner`](crate::flow::owner).
    pub owner: u8,
    /// One of [`stage`].
    pub stage: u8,
    /// Not 0: bytes of the client have passed unread, and a request may be hidden among them. For good.
    pub unread: u8,
    /// Bytes of [`crate::handshake::SWITCHING`] that the server's bytes end with, once the client's are unread.
    pub begun: u8,
    /// Not 0: a request is not complete, or asks for an upgrade.
    pub asks: u8,
    /// End of those unread bytes.
    pub unread_high: u32,
    /// The latest request's body: its first byte, or a later one that the server has, and its end. Of a
    /// chunked one, the end of what is known of it.
    pub body: u32,
    pub body_end: u32,
    /// Reader of the framing from `body_end` on, while a chunked body is open.
    pub chunks: Chunks,
    /// The client's latest shut window, without [`ANSWER_ROOM`].
    pub shut: Shut,
    /// Time of the server's latest new data, milliseconds modulo 2^32; behind its FIN, that of its latest new
    /// acknowledgement too.
    pub spoke_ms: u32,
    /// Bytes passed unread since the server's latest answer: [`Unopened::pass_unread`].
    pub unheard: u32,
    /// The same since the beginning.
    pub unread_bytes: u32,
    /// End of the bytes that passed as read, for which nothing was paid: [`Unopened::behind`].
    pub free_high: u32,
    /// End of the windows that the server has offered, with room for [`FAR`] bytes at most.
    pub edge: u32,
    /// End of the window in the client's latest segment.
    pub offered: u32,
    /// Place in the server's bytes up to which what passed into a full window is paid: [`Unopened::is_paid`].
    pub paid: u32,
    /// Places of a chunked body's framing that was read, and holes between.
    pub framing: Framing,
}

/// [`Unopened::had`]: the server has answered while bytes had passed unread, see [`Unopened::turn`].
const TURNED: u8 = 1 << 0;
/// The same: it has sent [`FAR`] bytes.
const LONG: u8 = 1 << 1;
/// The same: its FIN.
const SERVER_FIN: u8 = hidden::SERVER_FIN << ENDS;
/// The client has sent one that the server may have taken.
const CLIENT_FIN: u8 = hidden::CLIENT_FIN << ENDS;
/// The server may have no such connection any more: [`Unopened::is_gone`].
const GONE: u8 = hidden::GONE << ENDS;
/// Shift of these three.
const ENDS: u32 = 1;

/// Unread bytes of a connection that pass before the server is silent, while the client offers it room. More
/// of them are shared by all connections of the source.
const UNHEARD: u32 = 4 * 1024;
/// The same behind each of the server's answers.
const UNHEARD_SINCE: u32 = 16 * 1024;
/// Unread bytes of a connection behind which a silent server has read some of them, and had nothing to say:
/// more than its receive buffer and a library's hold at first.
const HEARD: u32 = 192 * 1024;
/// Silence after which a server with room has nothing to say, milliseconds.
const SILENT_MS: u32 = 2;

/// Window with room for the next segment of an answer, on links with jumbo frames, too: into a smaller one
/// than a segment a TCP sends nothing for a while (RFC 9293, 3.8.6.2.1).
pub const ANSWER_ROOM: u32 = 9000;

/// Window with room for an answer to a body, and to any other bytes that were read: less than that of
/// devices with little memory, which send files.
const BODY_ROOM: u32 = 2048;

/// Bytes of a body that pass for each byte of an answer that the client takes meanwhile.
const BODY_PER_ANSWER: u32 = 4;
/// Bytes of answers for which a body's may pass before the client takes them: some send all of a body first.
const PAID_AHEAD: u32 = 2 << 20;

/// Largest window of a SYN-ACK, which has no scale (RFC 7323, 2.2).
const UNSCALED: u32 = 0xFFFF;

/// Distance in bytes that honest segments and acknowledgements keep within.
pub const FAR: u32 = 1 << 24;

/// Answers of [`Unopened::judge`].
pub mod judged {
    /// The segment must not pass.
    pub const REFUSED: u32 = 0;
    /// It passes.
    pub const PASSES: u32 = 1;
    /// It passes, and a request may begin with it.
    pub const BEGINS: u32 = 2;
    /// It passes unless a request begins in it, where the server's or the passed bytes end.
    pub const REACHES: u32 = 3;
    /// It passes: it is within a request's body.
    pub const BODY: u32 = 4;
    /// It passes, and the framing of a chunked body goes on in it.
    pub const CHUNKS: u32 = 5;
}

impl Unopened {
    #[inline(always)]
    pub const fn new(began: Beginning, generation: u32) -> Unopened {
        let (first, server_high) = (began.client_next, began.server_next);
        let (acked, answered, high) = (first, first, first);
        let stage = stage::SILENT;
        let (unread, begun, asks, unread_high) = (0, 0, 0, first);
        let (body, body_end, chunks) = (first, first, Chunks::NONE);
        let (shut, spoke_ms, unheard) = (Shut::NONE, 0, 0);
        let (free_high, edge, offered) = (first, first.wrapping_add(UNSCALED), server_high);
        Unopened {
            began,
            acked,
            answered,
            high,
            server_high,
            generation: generation as u16,
            had: 0,
            owner: owner::NOBODY,
            stage,
            unread,
            begun,
            asks,
            unread_high,
            body,
            body_end,
            chunks,
            shut,
            spoke_ms,
            unheard,
            unread_bytes: 0,
            free_high,
            edge,
            offered,
            paid: server_high,
            framing: Framing::new(first),
        }
    }

    /// Check whether the connection was followed last under the policy of this `generation`.
    #[inline(always)]
    pub const fn is_under(&self, generation: u32) -> bool {
        self.generation == generation as u16
    }

    /// Take over the number of the server's segment of `len` bytes behind its SYN-ACKs, which acknowledges `ack`. With
    /// another number than that of the latest SYN-ACK, the client has answered an older one (a SYN cookie), and the
    /// scale is another SYN's. Before the server has sent anything: it may have answered for the latest, and then
    /// have forgotten it.
    #[inline(always)]
    pub const fn confirm(&mut self, seq: u32, ack: u32, len: u32) {
        let began = &mut self.began;
        let ahead = began.server_next.wrapping_sub(seq);
        // A keep-alive probe ends a byte before what was sent (RFC 9293, 3.8.4).
        if ahead == 1 && len == 0 && ack == began.client_next {
            return;
        }
        if self.server_high == began.server_next && ahead != 0 {
            began.client_scale = scale::NONE as u8;
        }
        began.stamps = stamp::NONE;
    }

    /// Check whether the SYN-ACK, with the server's first byte at `seq`, is this connection's again. Not once the server
    /// has acknowledged more.
    #[inline(always)]
    pub const fn is_begun_by(&self, seq: u32, ack: u32) -> bool {
        let began = &self.began;
        self.acked == began.client_next && ack == began.client_next && seq == began.server_next
    }

    /// Take over a repetition of the SYN-ACK, with this `scale` and `stamp`.
    #[inline(always)]
    pub const fn begins_again(&mut self, scale: u32, stamp: u16) {
        let began = &mut self.began;
        if scale == scale::NONE {
            began.client_scale = scale::NONE as u8;
        }
        if began.stamps != stamp::NONE {
            began.stamps |= stamp;
        }
    }

    /// Take over the client's SYN again, with `len` bytes of data at `seq`: a server with SYN cookies answers it by
    /// its own `scale`.
    #[inline(always)]
    pub const fn is_asked_again(&mut self, seq: u32, len: u32, scale: u8) {
        let first = self.began.client_next.wrapping_sub(seq);
        if (first == 0 || first == len) && scale < self.began.client_scale {
            self.began.client_scale = scale;
        }
    }

    /// Check whether the server may take the timestamp of the client's segment at `seq`, which acknowledges `ack`, for
    /// that of the handshake: it has sent nothing but SYN-ACKs. A SYN cookie accepts any numbers that are about
    /// equally far from the connection's.
    #[inline(always)]
    pub const fn may_scale(&self, seq: u32, ack: u32) -> bool {
        self.began.stamps != stamp::NONE && self.began.is_begun_by(seq, ack)
    }

    /// [`Beginning::judge_old`] for any segment of the client.
    #[inline(always)]
    pub const fn judge_old(&self, seq: u32, ack: u32, len: u32) -> Old {
        if before(seq, self.acked) {
            self.began.judge_old(self.acked, seq, ack, len)
        } else {
            Old::Pass
        }
    }

    /// Number of the server's latest bytes of which any may be yet to be acknowledged.
    #[inline(always)]
    const fn back(&self) -> u32 {
        let sent = self.server_high.wrapping_sub(self.began.server_next);
        if self.had & LONG == 0 && sent < FAR { sent } else { FAR }
    }

    /// Check whether the server may take a segment of `len` bytes at `seq`, which acknowledges `ack`.
    #[inline(always)]
    pub const fn is_credible(&self, seq: u32, len: u32, ack: u32) -> bool {
        let back = self.back();
        // A keep-alive probe ends a byte before what was sent (RFC 9293, 3.8.4).
        let forged = self.server_high.wrapping_add(1).wrapping_sub(ack) > back + 1;
        let end = seq.wrapping_add(len);
        // The server takes no segment that begins past its window (RFC 9293, 3.10.7.4).
        let past = end.wrapping_sub(self.acked) as i32 > FAR as i32 || after(seq, self.edge);
        !(forged || past || self.acked.wrapping_sub(seq) as i32 > FAR as i32)
    }

    /// Judge a client's segment: one of [`judged`].
    ///
    /// It has to acknowledge what the server sent not long ago, and to end not far past what the server
    /// has. The first bytes after the server's data come in order: past a gap, the server would get
    /// frames ahead of the request that fills it. And a request begins at the first byte that the
    /// server does not have, or that has not passed: a segment that begins before that and reaches
    /// further could hide one. So could an honest client's, merged because an acknowledgement was lost.
    #[inline(always)]
    pub const fn judge(&self, seq: u32, len: u32, ack: u32) -> u32 {
        let end = seq.wrapping_add(len);
        // What is past a hole in the framing could not be followed.
        let gap = self.unread == 0 && self.chunks.is_open() && after(seq, self.body_end);
        let first = !after(self.high, self.answered);
        let ahead = first && after(seq, self.acked);
        let reaches = before(seq, self.acked) && after(end, self.acked);
        // Another hole would be forgotten, and what fills it then counts as unread for good.
        let hole = self.unread == 0 && after(seq, self.high) && self.framing.is_full(self.acked);
        let refused = self.stage == stage::REFUSED || hole;
        if !self.is_credible(seq, len, ack) || ahead || gap || refused {
            judged::REFUSED
        } else if self.in_body(seq) {
            self.judge_body(seq, end)
        } else if seq == self.acked || seq == self.high {
            judged::BEGINS
        } else if reaches || before(seq, self.high) && after(end, self.high) {
            judged::REACHES
        } else {
            judged::PASSES
        }
    }

    /// Check whether the byte at `seq` is within the latest request's body. None is where another request may
    /// be hidden in front of it.
    #[inline(always)]
    const fn in_body(&self, seq: u32) -> bool {
        let known = self.unread == 0 && !before(seq, self.body);
        let next = self.chunks.is_open() && seq == self.body_end;
        known && (before(seq, self.body_end) || next)
    }

    /// Judge a segment that begins in the latest request's body.
    ///
    /// One with bytes of a chunked body's framing that was read, and that the server may not have taken, may
    /// have others in their place: they are read again. What follows the body's end is not read.
    #[inline(always)]
    const fn judge_body(&self, seq: u32, end: u32) -> u32 {
        if self.framing.fills(seq, end) {
            judged::BODY
        } else if self.framing.touches(seq, end, self.acked) {
            let whole = self.framing.first_in(seq, end, self.acked).is_some();
            if whole { judged::CHUNKS } else { judged::PASSES }
        } else if !after(end, self.body_end) {
            judged::BODY
        } else if self.chunks.is_open() {
            judged::CHUNKS
        } else {
            judged::PASSES
        }
    }

    /// Note that a segment passes; `read` where no request may be hidden in it. In one that the server
    /// has, none is.
    #[inline(always)]
    pub const fn pass(&mut self, seq: u32, len: u32, read: bool) {
        let end = seq.wrapping_add(len);
        if self.unread != 0 || !read {
            let new = if after(end, self.high) { end.wrapping_sub(self.high) } else { 0 };
            let new = if new < len { new } else { len };
            self.unheard = self.unheard.saturating_add(new);
            self.unread_bytes = self.unread_bytes.saturating_add(new);
        }
        if read && after(seq, self.high) {
            self.framing.skip(self.high, seq);
        }
        self.high = later(self.high, end);
        if read {
            self.free_high = later(self.free_high, end);
        }
        if !read && after(end, self.acked) {
            self.unread = 1;
            self.unread_high = later(self.unread_high, end);
        }
    }

    /// Note that a request begins at `seq`: what has passed behind that belonged to another one, of which
    /// the server may have any part. The same behind a request of whose head the server has said nothing yet:
    /// of two answers the first one may be all that is looked at.
    #[inline(always)]
    pub const fn begin(&mut self, seq: u32) {
        let pipelined = before(self.answered, self.body);
        if pipelined || after(self.high, seq) {
            self.unread = 1;
        }
    }

    /// Note that a request that asks for no upgrade ends at `from`, with a body of `length` bytes behind
    /// it, which is not known where that is `None`.
    #[inline(always)]
    pub const fn complete(&mut self, from: u32, length: Option<u32>) {
        self.asks = 0;
        let Some(length) = length else {
            self.unread = 1;
            return;
        };
        let end = from.wrapping_add(length);
        if self.body != from || self.body_end != end {
            self.begin_body(from, end);
            self.chunks = Chunks::NONE;
        }
    }

    /// The same of one whose body is chunked.
    #[inline(always)]
    pub const fn complete_chunked(&mut self, from: u32) {
        self.asks = 0;
        self.begin_body(from, from);
        self.chunks = Chunks::BEGIN;
    }

    #[inline(always)]
    const fn begin_body(&mut self, from: u32, end: u32) {
        // What has passed behind another head in its place may hide a request.
        let unknown = after(self.high, from);
        self.unread = if unknown { 1 } else { self.unread };
        (self.body, self.body_end) = (from, end);
        self.framing.clear(from);
    }

    /// Reader of the framing in a segment from `seq` to `end`, and the number of its next byte: of what was
    /// read before, where the segment has that again.
    #[inline(always)]
    pub const fn reader(&self, seq: u32, end: u32) -> (Chunks, u32) {
        match self.framing.first_in(seq, end, self.acked) {
            Some((from, reader)) => (reader, from),
            None => (self.chunks, self.body_end),
        }
    }

    /// Note that the framing of the chunked body was read from `from` up to `framed`, with the reader then in
    /// the state `chunks`, and that it goes on, or the body ends, at `end`. `false` where other framing was
    /// read there before.
    #[inline(always)]
    pub const fn read_chunks(&mut self, from: u32, framed: u32, chunks: Chunks, end: u32) -> bool {
        if from != self.body_end {
            let last = (self.body_end, self.chunks);
            return self.framing.is_known(from, framed, (end, chunks), last);
        }
        if framed != from {
            self.framing.add(from, framed, self.chunks, self.acked);
        }
        self.body = later(self.body, self.answered);
        (self.chunks, self.body_end) = (chunks, end);
        true
    }

    /// Check whether the server, which has the client's bytes up to `ack`, can have no request for an
    /// upgrade. `generation` is the policy's.
    #[inline(always)]
    pub const fn asks_nothing(&self, ack: u32, generation: u32) -> bool {
        let known = self.unread == 0 && !self.took_unseen(ack);
        known && self.asks == 0 && self.is_under(generation)
    }

    /// Check whether the server, which has the client's bytes up to `ack`, has some that were not seen. A FIN
    /// behind the last one counts as a byte (RFC 9293, 3.4).
    #[inline(always)]
    const fn took_unseen(&self, ack: u32) -> bool {
        after(ack, self.high.wrapping_add(1))
    }

    /// Check whether the server, which has the client's bytes up to `ack`, has not got all of the latest
    /// request's body. What it says meanwhile may answer another request, which is in that.
    #[inline(always)]
    pub const fn awaits_body(&self, ack: u32) -> bool {
        before(ack, self.body_end) || self.chunks.is_open()
    }

    /// Take over the `window` of a client's segment that acknowledges `ack`, as in a TCP header. Not of one that [`Unopened::judge`]
    /// refuses. `true` when the server may answer under it.
    #[inline(always)]
    pub const fn offers(&mut self, seq: u32, ack: u32, window: u32) -> bool {
        let room = offer::has_room(window, self.began.client_scale, ANSWER_ROOM);
        self.offered = offer::end(ack, window, self.began.client_scale, FAR);
        self.shut.offers(seq, room)
    }

    /// Number of bytes that have passed as read behind a segment that ends at `end`, unless the server has
    /// that segment.
    ///
    /// They passed as what the bytes in front of them said. A sender that puts others there may have them
    /// read as frames.
    #[inline(always)]
    pub const fn behind(&self, end: u32) -> u32 {
        let taken = !after(end, self.acked) || !after(self.free_high, end);
        if taken { 0 } else { self.free_high.wrapping_sub(end) }
    }

    /// Note that the bytes behind a segment that ends at `end` were paid.
    #[inline(always)]
    pub const fn pay_behind(&mut self, end: u32) {
        self.free_high = if self.behind(end) > 0 { end } else { self.free_high };
    }

    /// Decide whether an unread segment of `len` bytes passes: one of [`unread`].
    ///
    /// A request for an upgrade may be hidden in it, and frames behind that one. The server's 101 shows
    /// them, unless the client lets nothing out: it offers no window, or acknowledges little of what is
    /// in front of the 101. A server with room that is silent has nothing to say, once it has taken so much
    /// that it must have read some: it may be slow to answer. `now` is in milliseconds of a precise clock.
    #[inline(always)]
    pub const fn pass_unread(
        &mut self,
        seq: u32,
        ack: u32,
        window: u32,
        len: u32,
        now: u32,
    ) -> u32 {
        let room = self.offers(seq, ack, window);
        let silent = ack == self.server_high && elapsed_ms(now, self.spoke_ms) >= SILENT_MS;
        let heard = room && silent && self.unread_bytes >= HEARD;
        let most = if self.had & TURNED != 0 { UNHEARD_SINCE } else { UNHEARD };
        let decided = unread::decide(room, if heard { 0 } else { self.unheard }, most);
        match decided {
            unread::PASSES | unread::REFUSED if self.behind(seq.wrapping_add(len)) > 0 => {
                unread::FEW
            }
            unread::PASSES => unread::UNHEARD,
            unread::REFUSED => unread::SHARED,
            other => other,
        }
    }

    /// Decide whether a segment of `len` bytes passes that was read: one of [`unread`].
    ///
    /// A server may read it otherwise, as another request and frames behind that one: then its answer shows
    /// them, if the client lets it. On a connection with unread bytes it is one of those.
    #[inline(always)]
    pub const fn pass_read(&mut self, seq: u32, ack: u32, window: u32, len: u32, now: u32) -> u32 {
        if self.unread != 0 {
            return self.pass_unread(seq, ack, window, len, now);
        }
        let open = !self.shut.is_after(seq);
        self.offers(seq, ack, window);
        let large = offer::has_room(window, self.began.client_scale, BODY_ROOM);
        let room = open && large;
        // What the server has sent may fill the window.
        let left = self.offered.wrapping_sub(self.server_high) as i32;
        if room && left < BODY_ROOM as i32 && !self.is_paid(ack, len) {
            return unread::SHARED;
        }
        unread::decide(room, if room { 0 } else { self.unheard }, UNHEARD)
    }

    /// Check whether `len` bytes of a body pass into a window that the server's bytes fill, of a client that
    /// acknowledges `ack`: a few, and [`BODY_PER_ANSWER`] times what the client takes of the answer meanwhile,
    /// as one does that reads while it sends.
    #[inline(always)]
    const fn is_paid(&mut self, ack: u32, len: u32) -> bool {
        let paid = later(self.paid, ack).wrapping_add(len.div_ceil(BODY_PER_ANSWER));
        let is = paid.wrapping_sub(ack) <= PAID_AHEAD;
        self.paid = if is { paid } else { self.paid };
        is
    }

    /// Note that the server's segment from `seq` to `end`, which acknowledges `ack`, begins an answer that is
    /// no 101.
    ///
    /// Answers come in the order of requests (RFC 9112, 9.3.2): no upgrade that is hidden in front of this one
    /// has taken place. Unless the client lets so little out that the server's words are older ones.
    #[inline(always)]
    pub const fn turn(&mut self, seq: u32, end: u32, ack: u32) {
        let room = self.offered.wrapping_sub(end) as i32 >= ANSWER_ROOM as i32;
        let all = seq == self.server_high && ack == self.high;
        if self.unread != 0 && room && all {
            (self.had, self.unheard) = (self.had | TURNED, 0);
        }
    }

    /// Check whether bytes have passed beyond a request that ends at `end`, perhaps frames, before any
    /// answer: unread ones, or any where a request for an upgrade is `whole` there. What seemed to be
    /// the body of another one then passed as such.
    #[inline(always)]
    pub const fn passed_beyond(&self, end: u32, whole: bool) -> bool {
        after(if whole { self.high } else { self.unread_high }, end)
    }

    /// Check whether the server, which has the client's bytes up to `ack`, may begin an answer: it has new ones
    /// since it last sent data, or none behind a body, which a server that reads no bodies takes for requests.
    #[inline(always)]
    pub const fn may_answer(&self, ack: u32) -> bool {
        let body = self.body != self.body_end && ack == self.body_end;
        body || after(ack, self.answered)
    }

    /// Check whether the server has taken more than a request's bytes that were read up to `next`: the
    /// rest passed before they came again.
    #[inline(always)]
    pub const fn took_more(&self, next: u32) -> bool {
        after(self.acked, next)
    }

    /// Take over a server's segment that ends at `end` and offers `window`, as in a TCP header; it `speaks` where it has data or a FIN, which says
    /// nothing if it says it again. Returns `true` where it says something, or takes more behind its FIN.
    /// Bytes passed under another policy and were not followed: start to follow the connection from here.
    #[inline(always)]
    pub const fn acknowledge(
        &mut self,
        ack: u32,
        end: u32,
        window: u32,
        speaks: bool,
        generation: u32,
    ) -> bool {
        let anew = !self.is_under(generation);
        let edge = offer::end(ack, window, self.began.scale, FAR);
        self.edge = if anew { edge } else { later(self.edge, edge) };
        if anew {
            (self.generation, self.owner) = (generation as u16, owner::NOBODY);
            // Where nothing was followed in between, the numbers are anywhere.
            let followed = self.high.wrapping_sub(ack) < FAR;
            if !followed {
                (self.unread, self.unread_high, self.high) = (1, ack, ack);
            }
            let sent = self.server_high.wrapping_sub(end) < FAR;
            self.server_high = if sent { self.server_high } else { end };
            self.acked = ack;
        }
        let new = anew || after(end, self.server_high);
        let goes_on = self.had & SERVER_FIN != 0 && after(ack, self.acked);
        if self.took_unseen(ack) {
            self.unread = 1;
        }
        if after(ack, self.high) {
            // Only then: another CPU may move it ahead meanwhile.
            self.high = ack;
        }
        self.acked = later(self.acked, ack);
        self.server_high = later(self.server_high, end);
        // Only where it changes: another CPU may add to it.
        if self.had & LONG == 0 && self.server_high.wrapping_sub(self.began.server_next) >= FAR {
            self.had |= LONG;
        }
        not_before(&mut self.unread_high, self.acked);
        not_before(&mut self.free_high, self.acked);
        not_before(&mut self.framing.forgotten, self.acked);
        not_before(&mut self.answered, self.acked);
        not_before(&mut self.paid, self.server_high);
        if !(speaks && new) {
            return goes_on;
        }
        self.answered = self.acked;
        if self.stage == stage::SILENT {
            self.stage = stage::SPOKEN;
        }
        true
    }
}

/// Move `mark` to 1 GiB before `end` where it is earlier: half the sequence space behind, it would seem to be
/// ahead. Written only then: another CPU may move it ahead meanwhile.
#[inline(always)]
const fn not_before(mark: &mut u32, end: u32) {
    const BACK: u32 = 1 << 30;
    if end.wrapping_sub(*mark) as i32 > BACK as i32 {
        *mark = end.wrapping_sub(BACK);
    }
}

/// Maximum of [`Unopened`]s.
pub const BEGINNINGS: u32 = 16_384;

#[cfg(test)]
mod tests;
