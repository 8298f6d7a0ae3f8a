//! Stream tracker: the position of the next frame header in a TCP byte stream.
//!
//! A [`Tracker`] is the state of one direction of one connection, a plain value of 24 bytes. A
//! [`Walk`] takes it through one segment, header by header; payload bytes cost nothing, because a
//! frame's length tells where the next header is. Sequence numbers are in host byte order and wrap.
//!
//! The caller decides which segments to walk ([`crate::flow`] in the guard) and runs the loop:
//! `bpf_loop` in the kernel, `while` elsewhere. Both use the same [`Walk::step`].

use crate::{
    frame::{self, Expect, Header, Violations},
    record::Record,
};

mod mark;
mod seen;
mod walk;

pub(crate) use mark::mark_after;
pub use seen::Seen;
pub use walk::{SPRINT, Step, Walk};

/// Stride in which longer frames are crossed, because sequence numbers only compare within 2³¹
/// bytes while a frame may have 2⁶³.
const STRIDE: u32 = 1 << STRIDE_BITS;
pub(crate) const STRIDE_BITS: u32 = 30;

/// The frames come from the client, and so are masked.
pub const FROM_CLIENT: u8 = 1 << 0;
/// permessage-deflate was agreed, which defines RSV1.
pub const RSV1_AGREED: u8 = 1 << 1;
/// A fragmented message is open.
pub const IN_MESSAGE: u8 = 1 << 2;
/// Midstream pickup: until the first data frame it is unknown whether a message is open.
pub const MESSAGE_UNKNOWN: u8 = 1 << 3;
/// TLS records are followed, not frames: no header is a ping, and nothing is ever changed.
pub const RECORDS: u8 = 1 << RECORDS_BIT;
pub(crate) const RECORDS_BIT: u8 = 4;
/// The position of frames is a guess: the stream was not followed from its first one on. Only for
/// the server's; for the client's see [`crate::flow::Flow::is_uncertain`].
pub const GUESSED: u8 = 1 << 5;

/// In a [`crate::trail::Trace`] only: the top bit of the header's length, which has no meaning, is set.
pub(crate) const TOP_SET: u8 = 1 << 7;
/// Above these flags, in a trace only: the header's frame has 2³¹ strides, times two more bits.
pub(crate) const FAR: u32 = 1 << 9;

/// Position in one direction of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tracker {
    /// Strides of the frame beyond `next`, for frames longer than one. Of 2³² and more the upper bits are
    /// not kept, but for one: a frame of 2⁶² bytes does not end.
    pub beyond: u32,
    /// Hash of all headers so far, including positions and lengths, with a secret start: two
    /// trackers of one connection with the same mark have passed the same headers.
    pub mark: u32,
    /// Sequence number of the next header's first byte (or of the next stride).
    pub next: u32,
    /// Number of bytes of that header already read, in `carry`: 0 unless a segment split it.
    pub carried: u8,
    /// [`FROM_CLIENT`], [`RSV1_AGREED`], [`IN_MESSAGE`], [`MESSAGE_UNKNOWN`], [`RECORDS`],
    /// [`GUESSED`].
    pub flags: u8,
    /// First bytes of the split header, as on the wire.
    pub carry: [u8; frame::MAX_HEADER],
}

const _: () = assert!(size_of::<Tracker>() == 24);

impl Tracker {
    /// 0 for equal trackers, otherwise below 2^32. `==` without a branch.
    #[inline(always)]
    pub const fn apart(&self, other: &Tracker) -> u64 {
        let places =
            (self.beyond ^ other.beyond) | (self.mark ^ other.mark) | (self.next ^ other.next);
        let mut carries = (self.carried ^ other.carried) | (self.flags ^ other.flags);
        let mut i = 0;
        while i < frame::MAX_HEADER {
            carries |= self.carry[i] ^ other.carry[i];
            i += 1;
        }
        (places | carries as u32) as u64
    }

    /// Tracker of a stream whose next header starts at `next`.
    #[inline(always)]
    pub const fn new(next: u32, flags: u8) -> Tracker {
        Tracker { beyond: 0, mark: 0, next, carried: 0, flags, carry: [0; frame::MAX_HEADER] }
    }

    /// The same without a carried header, which is then all 0; `None` inside a header, or before another stride.
    #[inline(always)]
    pub const fn between(&self) -> Option<Tracker> {
        match self.carried as u32 | self.beyond {
            0 => Some(Tracker { mark: self.mark, ..Tracker::new(self.next, self.flags) }),
            _ => None,
        }
    }

    /// `==` for a tracker from [`Tracker::between`].
    #[inline(always)]
    pub const fn is_still(&self, between: &Tracker) -> bool {
        let places = (self.mark ^ between.mark) | (self.next ^ between.next) | self.beyond;
        places | self.carried as u32 | (self.flags ^ between.flags) as u32 == 0
    }

    /// Check whether records are followed, not frames.
    #[inline(always)]
    pub const fn in_records(&self) -> bool {
        self.flags & RECORDS != 0
    }

    /// Check whether a header is known for certain to begin at `seq`.
    #[inline(always)]
    pub const fn begins_at(&self, seq: u32) -> bool {
        let inside = self.carried as u32 | self.beyond | (self.flags & GUESSED) as u32;
        self.next == seq && inside == 0
    }

    /// Sequence number of the first byte not yet seen.
    #[inline(always)]
    pub const fn resume(&self) -> u32 {
        self.next.wrapping_add(self.carried as u32)
    }

    const fn expect(&self) -> Expect {
        Expect {
            from_client: self.flags & FROM_CLIENT != 0,
            rsv1_agreed: self.flags & RSV1_AGREED != 0,
            in_message: self.flags & IN_MESSAGE != 0,
        }
    }
}

/// Payload of one TCP segment, with callbacks for what a walk finds in it.
///
/// Offsets count from the first payload byte.
pub trait Segment {
    /// Two bytes at `at`, in network byte order; `None` past the end.
    fn u16_at(&self, at: u32) -> Option<u16>;
    /// The same, but `None` also where direct access does not suffice.
    /// For shortcuts: the verifier follows each way to read through them.
    #[inline(always)]
    fn u16_near(&self, at: u32) -> Option<u16> {
        self.u16_at(at)
    }
    /// Eight bytes at `at`, in network byte order; `None` past the end.
    fn u64_at(&self, at: u32) -> Option<u64>;
    /// The same, with the limits of [`Segment::u16_near`].
    #[inline(always)]
    fn u64_near(&self, at: u32) -> Option<u64> {
        self.u64_at(at)
    }
    /// One byte at `at`; `None` past the end.
    fn u8_at(&self, at: u32) -> Option<u8>;
    /// Defuse the PING with its first byte at `at`, which is over the budget.
    fn defuse(&mut self, at: u32);
    /// Called for a complete header.
    #[inline(always)]
    fn header(&mut self, _seq: u32, _header: Header, _violations: Violations) {}
    /// Called for a complete header of a TLS record.
    #[inline(always)]
    fn record(&mut self, _seq: u32, _record: Record, _violations: Violations) {}
}

/// Bytes in memory, read only: nothing is defused.
#[cfg(any(test, feature = "user"))]
impl Segment for &[u8] {
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.get(at as usize).copied()
    }

    fn u16_at(&self, at: u32) -> Option<u16> {
        self.get(at as usize..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
    }

    fn u64_at(&self, at: u32) -> Option<u64> {
        self.get(at as usize..)?.first_chunk().map(|eight| u64::from_be_bytes(*eight))
    }

    fn defuse(&mut self, _at: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_a_lap_more_leaves_another_mark() {
        let length = 0x1_0000_u64;
        for longer in [1 << 32, 1 << 40, 1 << 62, 1 << 63] {
            let after = |length: u64| {
                let mut bytes = vec![0x82, 0xFF];
                bytes.extend(length.to_be_bytes());
                bytes.extend([0; 4]);
                let mut walk = Walk::new(
                    Tracker::new(100, FROM_CLIENT),
                    &Tracker::new(100, FROM_CLIENT),
                    100,
                    14,
                );
                assert_eq!(walk.run(&mut &bytes[..]), Step::Done);
                walk.tracker
            };
            let (one, other) = (after(length), after(length | longer));
            assert_eq!(one.next, other.next);
            assert_ne!(one.mark, other.mark, "{longer:x}");
        }
    }
}
