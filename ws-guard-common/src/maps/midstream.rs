//! Connections older than the guard: candidates for midstream pickup.

use crate::{
    maps::FAR,
    seq::{after, later},
};

/// Maximum of [`Midstream`] entries.
pub const MIDSTREAM: u32 = 16_384;

/// Candidate for midstream pickup, after data of the server without a flow: value of
/// [`super::name::MIDSTREAM`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Midstream {
    /// Candidate for the client's next header.
    pub candidate: crate::search::Candidate,
    /// End of the client's bytes that the server has acknowledged.
    pub acked: u32,
    /// End of the server's bytes that were sent.
    pub server_high: u32,
}

impl Midstream {
    /// Take over a server's segment with data that ends at `end`.
    #[inline(always)]
    pub const fn hear(&mut self, ack: u32, end: u32) {
        self.acked = later(self.acked, ack);
        self.server_high = later(self.server_high, end);
    }

    /// Check whether the client's segment may be one of the connection's: an off-path attacker has to guess
    /// two numbers. Frames in any other one say nothing.
    #[inline(always)]
    pub const fn may_send(&self, seq: u32, len: u32, ack: u32) -> bool {
        let ahead = seq.wrapping_sub(self.acked) as i32;
        let new = after(seq.wrapping_add(len), self.acked) && ahead <= AHEAD;
        new && self.server_high.wrapping_sub(ack) <= FAR
    }
}

/// Maximum distance in bytes of a candidate's segment past what the server is known to have: it is known
/// only from segments with data.
const AHEAD: i32 = 1 << 20;
