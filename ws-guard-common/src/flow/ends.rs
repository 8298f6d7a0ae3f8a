//! Ends of a connection: what either side's RST and FIN mean for its flow.

use super::{FIN_SEEN, Flow, IDLE_NS, SERVER_DONE, hidden, state};
use crate::{
    maps::FAR,
    seq::{after, before, later},
    source::{elapsed_ms, millis},
};

/// Time behind a server's FIN, and behind the latest bytes that it has taken since, after which it may have forgotten
/// the connection, ms: servers do not wait longer for the rest of an upload that they have refused.
pub const LINGER_MS: u32 = 5000;

/// Distance of the furthest FIN from what the server waits for: more than windows are large.
const FURTHEST: u32 = 64 << 20;

/// Result of [`Flow::hear_reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reset {
    /// The server ignores it.
    Ignored = 0,
    /// It may be taken, and its sender has not shown to know the connection.
    Forged = 1,
    /// The server may take it.
    Gone = 2,
    /// The same, and the flow is closed.
    Closed = 3,
}

impl Flow {
    /// Take over the client's RST at `seq`, with `len` bytes behind it, which acknowledges `ack`: [`Reset`].
    ///
    /// The server takes one at its next byte (RFC 5961, 3.2), off path one of 2^32 guesses. Linux takes others too:
    /// behind bytes that it keeps out of order, a byte earlier once the client has ended its side, and any that
    /// overlaps the window once the server has closed the connection. Of those a client sends only the ones behind what
    /// it has sent, and it knows what it is yet to acknowledge.
    #[inline(always)]
    pub const fn hear_reset(&mut self, seq: u32, len: u32, ack: u32) -> Reset {
        let first = self.acked.wrapping_sub(1);
        if before(seq.wrapping_add(len), first) {
            return Reset::Ignored;
        }
        let near =
            !before(seq, first) && !after(seq, later(self.high, self.acked).wrapping_add(FAR));
        let knows = !before(ack, self.client_ack) && !after(ack, self.server_high);
        if seq != self.acked && !(near && knows) {
            return Reset::Forged;
        }
        self.hidden |= hidden::GONE;
        if self.client_reset(seq) { Reset::Closed } else { Reset::Gone }
    }

    /// Take over the client's credible FIN behind the byte at `end`, unless it is too far from what the server waits
    /// for.
    #[inline(always)]
    pub const fn hear_fin(&mut self, end: u32) {
        if end.wrapping_sub(self.acked).wrapping_add(FURTHEST) <= 2 * FURTHEST {
            self.fin = end;
            self.flags |= FIN_SEEN;
            self.hidden |= hidden::CLIENT_FIN;
        }
    }

    /// Take over the server's FIN, or its RST at `seq`, at `now` in ns.
    ///
    /// A RST answers a segment that does not belong to a connection (RFC 9293, 3.10.7.4), with that one's numbers, so
    /// that any may mean that there is none. With the server's next number it is the end.
    #[inline(always)]
    pub const fn hear_server_end(&mut self, seq: u32, resets: bool, now: u64) {
        if resets {
            self.hidden |= hidden::GONE;
            self.flags |= if seq == self.server_high { SERVER_DONE } else { 0 };
        } else {
            self.hidden |= hidden::SERVER_FIN;
            self.flags |= SERVER_DONE;
            self.server_ms = millis(now);
        }
    }

    /// Take over the server's segment of `len` bytes that ends at `end`, behind its FIN. With other bytes than those
    /// that it has sent, and the client has not acknowledged, it is another connection's.
    #[inline(always)]
    pub const fn hear_behind_end(&mut self, end: u32, len: u32) {
        if after(end, self.server_high) || before(end.wrapping_sub(len), self.client_ack) {
            self.hidden |= hidden::GONE;
        }
    }

    /// Check whether the server may have no such connection any more, at `now` in ns: one side has reset it, or both
    /// have ended it, or the server has, and has taken nothing for [`LINGER_MS`].
    ///
    /// Another one may then have begun with these numbers, without a SYN: by a SYN cookie, which comes from the
    /// numbers alone (RFC 4987, 3.6).
    #[inline(always)]
    pub const fn is_gone(&mut self, now: u64) -> bool {
        const BOTH: u8 = hidden::SERVER_FIN | hidden::CLIENT_FIN;
        let waited = elapsed_ms(millis(now), self.server_ms) >= LINGER_MS;
        let ended = self.hidden & hidden::SERVER_FIN != 0 && waited;
        if ended || self.hidden & BOTH == BOTH {
            self.hidden |= hidden::GONE;
        }
        self.hidden & hidden::GONE != 0
    }

    /// Handle the client's RST at `seq`.
    /// It ends the connection only at the server's exact next byte (RFC 5961, 3.2); the server
    /// ignores any other, and so does the guard.
    ///
    /// One that is out of sync goes on: reopened, it would be taken for one that is followed. Even
    /// at that byte the server may have discarded it, for example for a bad checksum: if more data
    /// arrives, [`Flow::reopen`].
    #[inline(always)]
    pub const fn client_reset(&mut self, seq: u32) -> bool {
        let ends = seq == self.acked && self.state == state::OPEN;
        if ends {
            self.state = state::CLOSED;
        }
        ends
    }

    /// Check whether the flow protects nothing any more, `silent_ns` after the client's last data:
    /// the server ended the connection, or it has been idle for long. An end by the *client* is not
    /// enough: see [`Flow::reopen`]. Only used under pressure.
    #[inline(always)]
    pub const fn is_over(&self, silent_ns: u64) -> bool {
        self.has_ended() || silent_ns > IDLE_NS
    }

    /// Check whether both sides have ended the connection. Where it is out of sync the client's end is
    /// not known.
    #[inline(always)]
    pub const fn has_ended(&self) -> bool {
        self.state != state::OPEN && self.flags & SERVER_DONE != 0
    }

    /// Reopen a closed flow at new data, up to `end`.
    /// Otherwise a RST or FIN that only the guard accepted would let everything pass.
    /// `false` for old data.
    #[inline(always)]
    pub fn reopen(&mut self, end: u32) -> bool {
        let goes_on = after(end, self.acked);
        if goes_on {
            self.state = state::OPEN;
            self.flags &= !FIN_SEEN;
            self.ended = 0;
            if after(self.acked, self.client.resume()) {
                self.lose_step();
            }
        }
        goes_on
    }
}
