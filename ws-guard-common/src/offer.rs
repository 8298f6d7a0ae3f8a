//! Windows that a client offers its server: whether the server may answer.

use crate::{pace::scale, seq::before};

/// The smallest window in a TCP header that has room, where its scale is unknown.
const UNSCALED_ROOM: u32 = 4;

/// Check whether a client's `window`, as in a TCP header, has room for `bytes`. `client_scale` is
/// encoded as in [`scale`].
#[inline(always)]
pub const fn has_room(window: u32, client_scale: u8, bytes: u32) -> bool {
    match client_scale as u32 {
        scale::UNKNOWN => window >= UNSCALED_ROOM,
        shift => window << ((shift - 1) & 15) >= bytes,
    }
}

/// End of a `window` behind `ack`, as in a TCP header, of at most `most` bytes; of those where its scale is
/// unknown.
#[inline(always)]
pub const fn end(ack: u32, window: u32, scale: u8, most: u32) -> u32 {
    let bytes = match scale as u32 {
        scale::UNKNOWN => most,
        shift => window << ((shift - 1) & 15),
    };
    ack.wrapping_add(if bytes < most { bytes } else { most })
}

/// Decisions about a segment that may hide frames.
pub mod unread {
    /// It passes: the server may answer.
    pub const PASSES: u32 = 0;
    /// It must not pass: the client has taken none of the answers for too long.
    pub const REFUSED: u32 = 1;
    /// It passes at its source's pace, because the server may not answer; few such bytes have passed.
    pub const FEW: u32 = 2;
    /// The same; many have.
    pub const MANY: u32 = 3;
    /// It passes for one of the first bytes of its source's connections, or else at the source's pace: the
    /// server may answer, but the client takes little of that.
    pub const SHARED: u32 = 4;
    /// It passes unless its source is over a limit, then as [`SHARED`]: the server may answer, but what it
    /// reads meanwhile is read.
    pub const UNHEARD: u32 = 5;
    /// It passes at its source's pace, also where connections are not paced: the server may have no such connection.
    pub const GONE: u32 = 6;

    /// Decide, after `bytes` that passed unread, of which at most `most` do while the server `may_answer`.
    #[inline(always)]
    pub const fn decide(may_answer: bool, bytes: u32, most: u32) -> u32 {
        match may_answer {
            true if bytes < most => PASSES,
            true => REFUSED,
            false if bytes < crate::flow::UNREAD => FEW,
            false => MANY,
        }
    }
}

/// Place of a client's latest segment with a shut window: its sequence number; 0 for none.
///
/// A server takes the window of a segment unless a later one had another (RFC 9293, 3.10.7.4), so a
/// segment behind this place opens it. One that is discarded, for a bad checksum for example, opens
/// nothing: what passes is judged by its own segment's window, with which it is taken or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Shut(u32);

impl Shut {
    pub const NONE: Shut = Shut(0);

    /// Check whether there is one.
    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.0 != 0
    }

    /// Check whether the latest shut window is that of a later segment than the one at `seq`.
    #[inline(always)]
    pub const fn is_after(&self, seq: u32) -> bool {
        self.0 != 0 && before(seq, self.0)
    }

    /// Record whether the window of the segment at `seq` has `room`. `true` when the server may answer
    /// under it.
    #[inline(always)]
    pub const fn offers(&mut self, seq: u32, room: bool) -> bool {
        let Shut(shut) = *self;
        let older = self.is_after(seq);
        if room && shut != 0 && seq.wrapping_sub(shut) >> 30 == 1 {
            // Twice as far, it would seem to lie ahead.
            *self = Shut(0);
        }
        if !room && !older {
            *self = Shut(if seq == 0 { 1 } else { seq });
        }
        room && !older
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_until_a_later_one() {
        for start in [1000, u32::MAX - 10, 0] {
            let mut shut = Shut::default();
            let mut at = |ahead: u32, room| shut.offers(u32::wrapping_add(start, ahead), room);
            assert!(at(0, true));
            assert!(!at(20, false));
            assert!(!at(19, true), "the server takes no older window");
            assert!(at(20, true) && at(21, true));
            assert!(!at(0, true), "still, if the other segment was discarded");
        }
    }

    #[test]
    fn a_shut_window_is_forgotten_before_it_seems_to_lie_ahead() {
        let mut shut = Shut::default();
        assert!(!shut.offers(7, false));
        for seq in (0..5u32).map(|n| (n << 29) + 7) {
            assert!(shut.offers(seq, true), "{seq}");
        }
        assert!(shut.offers(u32::MAX, true));
    }

    #[test]
    fn the_scale_counts() {
        assert!(has_room(8, 1 + 7, 1024) && !has_room(7, 1 + 7, 1024));
        assert!(has_room(1024, 1, 1024) && !has_room(1023, 1, 1024));
        assert!(has_room(4, 0, 1024) && !has_room(3, 0, 1024));
    }
}
