//! Pacing: holding the receive window that a server advertises to a connection over its limit.
//!
//! Each segment of the server tells how far the client may send: to the right edge, `ack + (window
//! << scale)` (RFC 9293, 3.8.6; RFC 7323, 2.3). While a connection is paced the guard lets that
//! edge advance only as fast as a token bucket permits, and rewrites the window field accordingly.
//! The client's own TCP waits: nothing is lost, and no byte of the stream is changed.
//!
//! ```text
//!                 ack           edge (held)                 ack + window (server's)
//! ─────────────────┬────────────────┬───────────────────────────────┬──────▶ sequence numbers
//!   acknowledged   │  may be sent   │      held back: granted by the token bucket
//! ```
//!
//! The edge never moves left, so what an honest client has sent is never beyond it, unless it had
//! more than [`AT_FIRST`] in flight when pacing began. A window may be a hundred times as large,
//! and a client could fill it again and again after a silence. It may also be smaller than it
//! seems: with SYN cookies the client finally decides whether there is a scale (RFC 4987, 3.6). The
//! *advertised* edge may be up to one unit of the scale left of it, because the field cannot
//! express the rest. RFC 7323, 2.4, prepares senders for that.

use crate::{
    seq::{after, later},
    source::elapsed_ms,
};

/// The largest shift of a window (RFC 7323, 2.3).
pub const MOST_SCALE: u8 = 14;

/// Time after which a paced connection gets its minimum, milliseconds.
///
/// The server does not know that its window is held, and sends no update. The answers to
/// zero-window probes open the window, and probes become rarer while the answers open nothing.
pub const STALL_MS: u32 = 1000;
/// Maximum distance of the first edge past what the server has acknowledged, bytes.
pub const AT_FIRST: u32 = 256 << 10;
/// Total cost of the first edges of a source's connections, bytes; a frame costs at least [`FRAME`].
/// Refilled by the pace.
pub const FIRSTS: u32 = 512 << 10;
/// Total cost beyond that of what is under way on them, unless its frames are [`dense`]: the initial
/// windows of fifty connections that go over their limit at once...
pub const CROWD: u32 = 1536 << 10;
/// ...that is, in this time since their source was throttled, milliseconds.
pub const CROWD_MS: u32 = 1000;
/// Initial window of a client's TCP, bytes (RFC 6928).
pub const INITIAL: u32 = 14_600;
/// Maximum cost of a connection's first frames beyond their bytes: about 520 of the smallest.
/// A client's initial window has room for 2,000, which delay others for tens of milliseconds.
pub const MOST_SURPLUS: u32 = 128 << 10;
/// Minimum cost of a frame, bytes: a frame of a few bytes costs a server as much.
pub const FRAME: u32 = 256;
/// Maximum debt of a bucket for small frames, in seconds of its rate.
/// For that time connections get only their minimum, also one that is over the limit by mistake.
const MOST_DEBT: u32 = 4;
/// Fraction of the pace at which the bucket of first edges is refilled.
const FIRSTS_FILL: u32 = 8;
/// That minimum in bytes, unless the scale's unit is larger.
pub const LEAST: u32 = 128;
/// Bytes that pass in [`STALL_MS`] because the server waits for them: about a packet that was not
/// merged. A longer segment passes as well, but the next one then waits longer.
pub const DUE: u32 = 2048;
/// Maximum wait until the next such segment, milliseconds.
pub const LONGEST_DUE_MS: u32 = 32 * STALL_MS;
/// Maximum of [`Budget::patience`], milliseconds: also a crowd behind one address, of which each goes a little
/// over the limit, shares a source.
const PATIENCE_MS: u32 = 4 * STALL_MS;
/// The same for a due segment of dense frames, which costs 25 times its bytes.
const DENSE_PATIENCE_MS: u32 = 60 * STALL_MS;
/// Minimum interval between probes of one new byte that pass, ms.
pub const PROBE_MS: u32 = 100;

/// Encoding of a window scale: the shift plus 1.
pub mod scale {
    /// The SYN-ACK was not seen.
    pub const UNKNOWN: u32 = 0;
    /// The SYN-ACK has no such option: no scale.
    pub const NONE: u32 = 1;

    /// From the option's shift.
    #[inline(always)]
    pub const fn of(shift: u8) -> u32 {
        (if shift > super::MOST_SCALE { super::MOST_SCALE } else { shift }) as u32 + 1
    }
}

/// Window advertised by a segment of the server.
#[derive(Clone, Copy, Debug)]
pub struct Advertised {
    pub ack: u32,
    /// The field of the header, not scaled.
    pub window: u32,
    /// Its shift, at most [`MOST_SCALE`].
    pub shift: u32,
}

impl Advertised {
    /// The right edge.
    #[inline(always)]
    const fn edge(&self) -> u32 {
        self.ack.wrapping_add(self.window << self.shift)
    }

    /// Minimum of a connection in [`STALL_MS`] that the field can express.
    #[inline(always)]
    const fn least(&self) -> u32 {
        let unit = 1 << self.shift;
        if unit > LEAST { unit } else { LEAST }
    }
}

/// Check whether frames that cost `more` than their `bytes` are much shorter than [`FRAME`].
#[inline(always)]
pub const fn dense(bytes: u32, more: u32) -> bool {
    more > bytes
}

/// Position of a client's segment relative to the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reach {
    /// It ends at the edge or before it.
    Within = 0,
    /// One new byte at the edge: a zero-window probe (RFC 9293, 3.8.6.1).
    Probe = 1,
    /// It passes the edge: the sender ignores the window.
    Beyond = 2,
}

/// Held window of a connection. Times are milliseconds modulo 2³².
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hold {
    /// Right edge: the client may send bytes before it. Until it is in force: end of what the
    /// client may have in flight.
    pub edge: u32,
    /// Not 0: the edge is in force.
    pub held: u32,
    /// Start of pacing.
    pub since_ms: u32,
    /// Time of the connection's last minimum.
    pub moved_ms: u32,
    /// Time of the last passed probe.
    pub probed_ms: u32,
    /// Time from which on a segment passes in any case if the server waits for it.
    pub due_ms: u32,
    /// Bytes granted since pacing began, before the first edge too.
    pub granted: u32,
    /// The server's own edge when pacing began.
    pub offered: u32,
    /// End of the client's passed bytes when its frames were last counted...
    pub counted_high: u32,
    /// ...and the number of frames that began in them and before, modulo 2³².
    pub counted_frames: u32,
    /// Excess of its bytes over its frames, which cost at least [`FRAME`] each; at most that much.
    pub ahead: u32,
}

impl Hold {
    /// Begin pacing: the next segment of the server sets the edge.
    /// The client's bytes up to `high` have passed, in which `frames` began, modulo 2³².
    /// In slow start the client may have its initial window in flight, and as much again as was
    /// acknowledged: the bytes from `start` to `acked` (RFC 5681, 3.1).
    #[inline(always)]
    pub const fn begin(&mut self, now_ms: u32, high: u32, frames: u32, start: u32, acked: u32) {
        let grown = acked.wrapping_sub(start);
        let grown = if grown < AT_FIRST { grown } else { AT_FIRST };
        *self = Hold {
            edge: acked.wrapping_add(INITIAL).wrapping_add(grown),
            held: 0,
            since_ms: now_ms,
            moved_ms: now_ms,
            probed_ms: now_ms.wrapping_sub(PROBE_MS),
            due_ms: now_ms,
            granted: 0,
            offered: 0,
            counted_high: high,
            counted_frames: frames,
            ahead: 0,
        };
    }

    /// Cost of a first edge of `bytes` that have not arrived yet.
    /// Their price is that of the `latest` bytes, whose frames cost `more` than their bytes.
    #[inline(always)]
    pub const fn cost(bytes: u32, latest: u32, more: u32) -> u32 {
        if latest == 0 {
            return bytes;
        }
        let cost = bytes as u64 + bytes as u64 * more as u64 / latest as u64;
        if cost < u32::MAX as u64 { cost as u32 } else { u32::MAX }
    }

    /// Check whether a connection's first frames cost too much beyond their bytes: those granted and
    /// `len` more, at the price of `bytes` that cost `more`.
    #[inline(always)]
    pub const fn exceeds_surplus(&self, len: u32, bytes: u32, more: u32) -> bool {
        let all = self.granted.saturating_add(len);
        Self::cost(all, bytes, more) - all > MOST_SURPLUS
    }

    /// Number of the next `rest` bytes that cost no more than [`MOST_SURPLUS`] beyond their number,
    /// if all of them cost `cost`.
    #[inline(always)]
    pub const fn affordable(rest: u32, cost: u32) -> u32 {
        let more = cost.saturating_sub(rest);
        if more <= MOST_SURPLUS {
            return rest;
        }
        (rest as u64 * MOST_SURPLUS as u64 / more as u64) as u32
    }

    /// Count frames since the last call, up to `high` with `frames` begun.
    /// Returns their cost beyond their bytes.
    #[inline(always)]
    pub const fn count(&mut self, high: u32, frames: u32) -> u32 {
        let bytes = high.wrapping_sub(self.counted_high);
        if bytes > i32::MAX as u32 {
            return 0;
        }
        let began = frames.wrapping_sub(self.counted_frames) as u64;
        (self.counted_high, self.counted_frames) = (high, frames);
        let (whole, paid) = (began * FRAME as u64, bytes as u64 + self.ahead as u64);
        let ahead = paid.saturating_sub(whole);
        self.ahead = if ahead < FRAME as u64 { ahead as u32 } else { FRAME };
        let more = whole.saturating_sub(paid);
        // A segment that was due is waited for by what its frames count.
        let wait = more * STALL_MS as u64 / DUE as u64;
        let wait = if wait < LONGEST_DUE_MS as u64 { wait as u32 } else { LONGEST_DUE_MS };
        let passed = self.due_ms != self.since_ms;
        self.due_ms = if passed { self.due_ms.wrapping_add(wait) } else { self.due_ms };
        if more < u32::MAX as u64 { more as u32 } else { u32::MAX }
    }

    /// Distance of the first edge past what the server has acknowledged: the client may have that
    /// much in flight. 0 where there is an edge.
    #[inline(always)]
    pub const fn first(&self, server: &Advertised) -> u32 {
        let ahead = server.edge().wrapping_sub(server.ack);
        match self.held {
            0 if ahead < AT_FIRST => ahead,
            0 => AT_FIRST,
            _ => 0,
        }
    }

    /// Part of that distance that the client may have used; its bytes up to `high` have passed.
    #[inline(always)]
    pub const fn under_way(&self, server: &Advertised, high: u32) -> u32 {
        let reach = later(self.edge, high);
        let ahead = if after(reach, server.ack) { reach.wrapping_sub(server.ack) } else { 0 };
        let first = self.first(server);
        if ahead < first { ahead } else { first }
    }

    /// Part of that distance that was granted before there was an edge and is still in flight; the
    /// client's bytes up to `high` have passed.
    #[inline(always)]
    pub const fn paid(&self, server: &Advertised, high: u32) -> u32 {
        let under_way = if after(high, server.ack) { high.wrapping_sub(server.ack) } else { 0 };
        let first = self.first(server);
        let paid = if self.granted < under_way { self.granted } else { under_way };
        if paid < first { paid } else { first }
    }

    /// Number of bytes that the server opens beyond the edge.
    ///
    /// The first segment of a hold sets the edge, `first` bytes ahead: until then the client knew
    /// of nothing beyond.
    #[inline(always)]
    pub const fn wants(&mut self, server: &Advertised, first: u32) -> u32 {
        if self.held == 0 {
            self.offered = server.edge();
            self.edge = server.ack.wrapping_add(first);
            self.held = 1;
        }
        // The server took a probe, or bytes from before the hold.
        self.edge = later(self.edge, server.ack);
        let ahead = server.edge().wrapping_sub(self.edge);
        if after(server.edge(), self.edge) { ahead } else { 0 }
    }

    /// Number of the `wanted` bytes that the connection gets even from an empty bucket, unless it has to wait
    /// longer: [`Budget::patience`].
    #[inline(always)]
    pub const fn minimum(&self, server: &Advertised, wanted: u32, now_ms: u32) -> u32 {
        if elapsed_ms(now_ms, self.moved_ms) < STALL_MS {
            return 0;
        }
        if server.least() < wanted { server.least() } else { wanted }
    }

    /// Advance the edge by `granted` bytes, but not past the server's own, and return the window
    /// field to send.
    #[inline(always)]
    pub const fn open(&mut self, server: &Advertised, granted: u32, now_ms: u32) -> u32 {
        let right = server.edge();
        let wanted = self.edge.wrapping_add(granted);
        // Another CPU may have advanced it meanwhile.
        if granted > 0 && !after(wanted, right) {
            self.edge = wanted;
            self.granted = self.granted.saturating_add(granted);
            if granted >= server.least() {
                self.moved_ms = now_ms;
            }
        }
        // A segment older than the edge (the server sent it earlier) keeps its own window.
        if after(server.ack, self.edge) {
            return 0;
        }
        let field = self.edge.wrapping_sub(server.ack) >> server.shift;
        if field < server.window { field } else { server.window }
    }

    /// Check whether the client may have sent more than the edge permits before it knew of it.
    #[inline(always)]
    pub const fn is_cut(&self) -> bool {
        self.held != 0 && after(self.offered, self.edge)
    }

    /// Decide whether a segment of `len` bytes that the server waits for may pass now.
    /// The next one may after [`STALL_MS`], and later by as much for each [`DUE`] bytes that its length
    /// or its frames cost, and by its source's `patience`; also the first one where frames are `dense`.
    #[inline(always)]
    pub const fn due(&mut self, len: u32, now_ms: u32, patience: u32, dense: bool) -> bool {
        let wait = self.due_ms.wrapping_sub(now_ms) as i32;
        if wait > LONGEST_DUE_MS as i32 {
            self.due_ms = now_ms.wrapping_add(LONGEST_DUE_MS);
        }
        let waits = dense || self.due_ms != self.since_ms;
        let due = wait <= if waits { -(patience as i32) } else { 0 };
        if due {
            self.due_ms = now_ms.wrapping_add((len / DUE + 1) * STALL_MS);
        }
        due
    }

    /// Classify a segment of the client by its end; a probe that may pass now is recorded.
    #[inline(always)]
    pub const fn reach(&mut self, seq: u32, len: u32, now_ms: u32) -> Reach {
        if !after(seq.wrapping_add(len), self.edge) {
            return Reach::Within;
        }
        let due = elapsed_ms(now_ms, self.probed_ms) >= PROBE_MS;
        if len == 1 && seq == self.edge && due {
            self.probed_ms = now_ms;
            return Reach::Probe;
        }
        Reach::Beyond
    }
}

/// Token bucket in bytes. All zero: full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// Bytes taken and not yet refilled.
    pub taken: u32,
    /// Time of the last refill, milliseconds modulo 2³².
    pub filled_ms: u32,
}

impl Budget {
    /// Take up to `wanted` bytes from a bucket that is refilled at `rate` bytes a second and holds
    /// one second's worth.
    #[inline(always)]
    pub const fn take(&mut self, now_ms: u32, rate: u32, wanted: u32) -> u32 {
        self.fill(now_ms, rate);
        let left = rate.saturating_sub(self.taken);
        let granted = if wanted < left { wanted } else { left };
        self.taken += granted;
        granted
    }

    /// Take `bytes`, the cost of small frames beyond their own bytes: up to [`MOST_DEBT`].
    #[inline(always)]
    pub const fn owe_frames(&mut self, now_ms: u32, rate: u32, bytes: u32) {
        // Earlier time does not pay for them.
        self.fill(now_ms, rate);
        self.owe_up_to(rate.saturating_mul(1 + MOST_DEBT), bytes);
    }

    /// Take up to `wanted` bytes for a connection's first edge from the bucket of its source's
    /// first edges, at a pace of `rate`. They cost `cost`; `more`, the cost of earlier frames that were
    /// taken for longer ones, is taken in any case. The first `sent` of them may be under way: there is
    /// [`CROWD`] more for them.
    #[inline(always)]
    pub const fn take_first(
        &mut self,
        now_ms: u32,
        rate: u32,
        wanted: u32,
        sent: u32,
        cost: u32,
        more: u32,
    ) -> u32 {
        self.fill(now_ms, Self::first_rate(rate));
        self.owe_up_to(FIRSTS + CROWD, more);
        let left = FIRSTS.saturating_sub(self.taken);
        if cost <= left || wanted == 0 {
            self.taken += cost;
            return wanted;
        }
        let granted = (wanted as u64 * left as u64 / cost as u64) as u32;
        self.taken += left;
        if sent <= granted || dense(wanted, cost.saturating_sub(wanted)) {
            return granted;
        }
        // No more than twice their number.
        let cost = ((sent - granted) as u64 * cost as u64 / wanted as u64) as u32;
        let taken = self.taken.saturating_add(cost);
        if taken > FIRSTS + CROWD {
            return granted;
        }
        self.taken = taken;
        sent
    }

    /// Decide whether a segment of `len` bytes passes for one of the first bytes of its source's
    /// connections, as it does while any are left.
    #[inline(always)]
    pub const fn admits_first(&mut self, now_ms: u32, rate: u32, len: u32) -> bool {
        self.fill(now_ms, Self::first_rate(rate));
        let admits = self.taken < FIRSTS;
        self.taken = if admits { self.taken.saturating_add(len) } else { self.taken };
        admits
    }

    /// Take `bytes` that were not granted: those of a minimum.
    /// They add to the debt up to a second's worth, because the minimum of many connections may
    /// exceed the rate.
    #[inline(always)]
    pub const fn owe(&mut self, rate: u32, bytes: u32) {
        self.owe_up_to(rate.saturating_mul(2), bytes);
    }

    #[inline(always)]
    const fn owe_up_to(&mut self, most: u32, bytes: u32) {
        let taken = self.taken.saturating_add(bytes);
        let most = if self.taken > most { self.taken } else { most };
        self.taken = if taken < most { taken } else { most };
    }

    /// Take `bytes` that passed on a connection because it waited for long. They come from the first bytes
    /// of its source's connections, which many of them together may overdraw, and by more where
    /// frames are `dense`.
    #[inline(always)]
    pub const fn owe_first(&mut self, rate: u32, bytes: u32, dense: bool) {
        let most = Self::first_rate(rate).saturating_mul(Self::longest(dense) / 1000);
        self.owe_up_to(FIRSTS.saturating_add(most), bytes);
    }

    /// Time that each connection waits for such bytes beyond [`STALL_MS`], milliseconds: 0 unless they are
    /// overdrawn.
    #[inline(always)]
    pub const fn patience(&mut self, now_ms: u32, rate: u32, dense: bool) -> u32 {
        let rate = Self::first_rate(rate);
        self.fill(now_ms, rate);
        let over = self.taken.saturating_sub(FIRSTS) as u64;
        let longest = Self::longest(dense);
        let most = rate as u64 * (longest / 1000) as u64;
        if over >= most {
            return longest;
        }
        (over * 1000 / rate as u64) as u32
    }

    /// Maximum of that time.
    #[inline(always)]
    const fn longest(dense: bool) -> u32 {
        if dense { DENSE_PATIENCE_MS } else { PATIENCE_MS }
    }

    /// Rate at which first bytes are refilled.
    #[inline(always)]
    const fn first_rate(rate: u32) -> u32 {
        if rate < FIRSTS_FILL { 1 } else { rate / FIRSTS_FILL }
    }

    /// Decide whether a segment of `len` bytes passes whole, as it does while anything is left. All
    /// of it is taken: a merged segment may be worth many seconds.
    #[inline(always)]
    pub const fn admits(&mut self, now_ms: u32, rate: u32, len: u32) -> bool {
        self.fill(now_ms, rate);
        let admits = self.taken < rate;
        self.taken = if admits { self.taken.saturating_add(len) } else { self.taken };
        admits
    }

    #[inline(always)]
    const fn fill(&mut self, now_ms: u32, rate: u32) {
        let elapsed = elapsed_ms(now_ms, self.filled_ms);
        let filled = elapsed as u64 * rate as u64 / 1000;
        let filled = if filled < u32::MAX as u64 { filled as u32 } else { u32::MAX };
        if filled > 0 {
            self.taken = self.taken.saturating_sub(filled);
            self.filled_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests;
