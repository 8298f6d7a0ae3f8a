//! Ends of a connection without a flow, as in [`crate::flow`].

use super::{CLIENT_FIN, ENDS, FAR, GONE, LONG, SERVER_FIN, Unopened};
use crate::{
    flow::{LINGER_MS, hidden},
    seq::{after, before, later},
    source::elapsed_ms,
};

/// Distance of a RST's acknowledgement from the server's latest byte, unless the RST has the very number that the
/// server waits for: off path, as hard to guess.
pub(super) const CLOSE: u32 = 64 * 1024;

impl Unopened {
    /// Take over the client's FIN or RST at `seq`, with `len` bytes behind it, which acknowledges `ack`. `false` where
    /// it must not pass: the server may take it, and its sender has not shown to know the connection.
    #[inline(always)]
    pub const fn end_by_client(&mut self, seq: u32, len: u32, ack: u32, resets: bool) -> bool {
        let end = seq.wrapping_add(len);
        if !resets {
            let credible = self.is_credible(end, 0, ack);
            self.had |= if credible { CLIENT_FIN } else { 0 };
            return credible;
        }
        // See `Flow::hear_reset`.
        let first = self.acked.wrapping_sub(1);
        let near =
            !before(seq, first) && !after(seq, later(self.high, self.acked).wrapping_add(FAR));
        let knows = self.server_high.wrapping_sub(ack) <= CLOSE && self.is_credible(seq, 0, ack);
        let counts = seq == self.acked || near && knows;
        self.had |= if counts { GONE } else { 0 };
        counts || before(end, first)
    }

    /// Take over the server's FIN, or its RST at `seq`, at `now` in milliseconds.
    #[inline(always)]
    pub const fn end_by_server(&mut self, seq: u32, resets: bool, now: u32) {
        if !resets {
            // Before the other: programs of another CPU read both.
            self.spoke_ms = now;
            self.had |= SERVER_FIN;
            return;
        }
        // It answers a segment of the client, which may be as old. Others answer those of no connection.
        let back = if self.had & LONG == 0 { self.back() } else { 2 * FAR };
        let known = self.server_high.wrapping_sub(seq) <= back;
        self.had |= if known || self.had & SERVER_FIN != 0 { GONE } else { 0 };
    }

    /// Ends of the connection so far, as bits of a [flow](mod@hidden).
    #[inline(always)]
    pub const fn ends(&self) -> u8 {
        self.had >> ENDS & hidden::ENDS
    }

    /// Add to them.
    #[inline(always)]
    pub const fn take_over(&mut self, ends: u8) {
        self.had |= (ends & hidden::ENDS) << ENDS;
    }

    /// Check whether the server may have no such connection any more, at `now` in milliseconds: see
    /// [`Flow::is_gone`](crate::flow::Flow::is_gone).
    #[inline(always)]
    pub const fn is_gone(&mut self, now: u32) -> bool {
        const BOTH: u8 = SERVER_FIN | CLIENT_FIN;
        let waited = elapsed_ms(now, self.spoke_ms) >= LINGER_MS;
        if self.had & SERVER_FIN != 0 && waited || self.had & BOTH == BOTH {
            self.had |= GONE;
        }
        let gone = self.had & GONE != 0;
        // Another one's requests are not followed.
        self.unread |= gone as u8;
        gone
    }
}
