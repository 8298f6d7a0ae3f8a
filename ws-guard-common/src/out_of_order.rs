//! Out-of-order segments: pass them and keep a copy, to judge the filler of a gap by both.
//!
//! A server delivers nothing past a gap before the gap is filled. So segments past the cursor may
//! pass if the guard keeps a copy of them. The filler, the segment that takes the cursor to the
//! first kept byte, passes only if the frames from there up to the next gap keep to the limit.
//!
//! ```text
//!  ───────────┬ ─ ─ ─ ─ ─ ─ ─┬───────────────┬ ─ ─ ─ ─ ─┬───────┬─────▶ sequence numbers
//!          cursor    gap   begin            end   gap  begin   end
//!                            └ let through, kept ┘        └ kept ┘
//! ```
//!
//! One [`Region`] a flow, of up to [`RANGES`] ranges. Its bytes are in a ring of [pages](crate::pages),
//! each where its sequence number says. Bytes received twice have to be the same, or it would be
//! unknown which of them the server holds. What the server has cannot be defused any more: all pings
//! of a range pass, or its filler does not. Ranges past a later gap stay as they are, and wait for its
//! filler. Where the segments of a range ended is not kept: it is walked and committed in
//! [pieces](piece), each with its traces.

use crate::{
    flow::{Flow, state},
    ledger::FEWEST,
    maps::FlowKey,
    pages::{PAGE, Pages, mask},
    seq::before,
    tracker::{Tracker, Walk},
};

/// Distance from the first to the last of one flow's out-of-order bytes, at most; a power of two.
pub const BYTES: u32 = 262_144;
/// Maximum of ranges of such bytes, each past a gap of its own.
pub const RANGES: usize = 8;
/// Distance from the stream's next header or byte to kept segments, at most: a server's window or less,
/// so that an off-path attacker cannot guess a sequence number in it.
pub const REACH: u32 = BYTES;
/// Maximum of flows with out-of-order segments, a power of two.
pub const SLOTS: u32 = 128;

/// Copy of one flow's out-of-order segments.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Held {
    /// 1 while a CPU has entered it. No other one touches the flow's stream then.
    pub busy: u32,
    pub _pad: u32,
    /// Its [`owner`]; 0 for none.
    pub owner: u64,
    /// Its connection.
    /// While that has out-of-order segments no other one gets the copy: what the server has could
    /// no longer be judged.
    pub key: FlowKey,
    pub _pad1: u32,
    pub region: Region,
    /// Pages of its bytes.
    pub pages: Pages,
}

impl Default for Held {
    /// Without an owner.
    fn default() -> Held {
        let (key, region, pages) = (FlowKey::default(), Region::default(), Pages::default());
        Held { busy: 0, _pad: 0, owner: 0, key, _pad1: 0, region, pages }
    }
}

/// Place of the byte with that sequence number in the ring.
#[inline(always)]
pub const fn place(seq: u32) -> usize {
    (seq & (BYTES - 1)) as usize
}

/// Length of the piece from `from` on in `range`: to the end of its page, or of a [`mesh`].
#[inline(always)]
pub const fn piece(range: &Range, from: u32, mesh: u32) -> u32 {
    let (left, room) = (range.end().wrapping_sub(from), PAGE - (from & (PAGE - 1)));
    let within = match from.wrapping_sub(range.begin).checked_rem(mesh) {
        Some(within) => within,
        None => 0,
    };
    let len = choose(earlier(left, room), left, room);
    choose(earlier(mesh - within, len), mesh - within, len)
}

/// Length of meshes, at the ends of which a range is cut besides: those of the filler's `len` bytes, where
/// the flow has no trail. It keeps the beginning of each piece, and the sender's next segments are
/// probably as long as the one that it has sent again.
#[inline(always)]
pub const fn mesh(len: u32, trail: u32) -> u32 {
    let none = (trail != 0) as u32 | earlier(len, FINEST);
    choose(none, 1 << 30, len)
}

/// The finest mesh: a segment of the smallest size that every path takes, or nearly.
const FINEST: u32 = 512;

/// Range of kept bytes without a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// Sequence number of the first byte.
    pub begin: u32,
    /// Number of bytes; 0 for no range.
    pub len: u32,
}

/// Ranges of the kept bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Ranges, in any order. Between two of them is a gap.
    pub ranges: [Range; RANGES],
    /// Number of bytes in all of them; 0 for an empty region.
    pub len: u32,
    pub _pad: u32,
    pub look: Look,
}

/// Result of the latest walk through ranges.
/// Such a walk is expensive, and a sender may repeat the filler of its gap again and again.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Look {
    /// Tracker before them...
    pub start: Tracker,
    /// ...in a region of this length; 0 without a walk so far.
    pub len: u32,
    /// Number of pings, or [`Look::FAILED`].
    pub pings: u32,
    /// Cost of all walks so far: of [`MOST_LOOKS`].
    pub spent: u32,
    pub _pad: u32,
}

/// Maximum of walks through ranges before their filler is refused unseen.
/// An honest sender retransmits the same filler, which needs no further walk.
pub const MOST_LOOKS: u32 = 8;

impl Look {
    /// The walk did not reach the end of what it should.
    pub const FAILED: u32 = u32::MAX;
}

const _: () = {
    assert!(BYTES.is_power_of_two() && SLOTS.is_power_of_two());
    assert!(size_of::<Held>() == 56 + size_of::<Region>() + size_of::<Pages>());
    assert!(size_of::<Region>() == 8 * RANGES + 8 + size_of::<Look>());
};

/// Owner of a copy: the connection and its [`Flow::generation`]. Never 0.
#[inline(always)]
pub const fn owner(key: &FlowKey, generation: u32) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let ports = (key.client_port as u64) << 16 | key.server_port as u64;
    let (c, s) = (&key.client.0, &key.server.0);
    let mut mixed = (ports ^ (c[0] ^ s[0].rotate_left(16)) as u64).wrapping_mul(ODD);
    mixed = (mixed ^ mixed >> 32 ^ (c[1] ^ s[1].rotate_left(16)) as u64).wrapping_mul(ODD);
    mixed = (mixed ^ mixed >> 32 ^ (c[2] ^ s[2].rotate_left(16)) as u64).wrapping_mul(ODD);
    mixed = (mixed ^ mixed >> 32 ^ (c[3] ^ s[3].rotate_left(16)) as u64).wrapping_mul(ODD);
    (generation as u64) << 32 | mixed >> 32 | 1
}

/// Slot of an [`owner`]'s copy, shared with others.
#[inline(always)]
pub const fn slot(owner: u64) -> u32 {
    (owner ^ owner >> 32).wrapping_mul(0x9E37_79B1) as u32 >> (32 - SLOTS.trailing_zeros())
}

/// 1 if `a` is before `b` in the sequence space, otherwise 0.
/// Without a branch, as all that follows: the kernel's verifier would follow both sides.
#[inline(always)]
pub(crate) const fn earlier(a: u32, b: u32) -> u32 {
    a.wrapping_sub(b) >> 31
}

/// `a` if `is` is 1, `b` if it is 0.
#[inline(always)]
pub(crate) const fn choose(is: u32, a: u32, b: u32) -> u32 {
    b ^ (a ^ b) & is.wrapping_neg()
}

impl Range {
    /// Sequence number after the last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.begin.wrapping_add(self.len)
    }

    /// 1 if there is such a range, otherwise 0.
    #[inline(always)]
    const fn exists(&self) -> u32 {
        self.len.wrapping_neg() >> 31
    }

    /// First byte and number of those that are also in the segment of `len` bytes at `seq`.
    #[inline(always)]
    pub const fn shared(&self, seq: u32, len: u32) -> (u32, u32) {
        let end = seq.wrapping_add(len);
        let from = choose(earlier(seq, self.begin), self.begin, seq);
        let to = choose(earlier(self.end(), end), self.end(), end);
        let some = self.exists() & earlier(from, to);
        (from, to.wrapping_sub(from) & some.wrapping_neg())
    }

    /// Check whether a stream at `tracker` has reached the range or passed its beginning: its gap
    /// is filled.
    #[inline(always)]
    pub fn is_reached(&self, tracker: &Tracker) -> bool {
        self.len != 0 && !before(tracker.resume(), self.begin)
    }
}

impl Default for Region {
    /// An empty one.
    fn default() -> Region {
        let ranges = [Range::default(); RANGES];
        Region { ranges, len: 0, _pad: 0, look: Look::default() }
    }
}

impl Region {
    /// Empty the region.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.ranges = [Range::default(); RANGES];
        self.len = 0;
        (self.look.len, self.look.spent) = (0, 0);
    }

    /// Recall the result of a walk through the region from `start`, if known: its number of pings,
    /// or [`Look::FAILED`].
    #[inline(always)]
    pub fn recall(&self, start: &Tracker) -> Option<u32> {
        if self.look.len == self.len && self.look.start == *start {
            Some(self.look.pings)
        } else if self.look.spent >= MOST_LOOKS {
            Some(Look::FAILED)
        } else {
            None
        }
    }

    /// Remember that a walk through the region from `start` found `pings`, or [`Look::FAILED`].
    #[inline(always)]
    pub fn looked(&mut self, start: &Tracker, pings: u32) {
        let spent = if pings == Look::FAILED { MOST_LOOKS / 2 } else { 1 };
        let spent = self.look.spent.saturating_add(spent);
        self.look = Look { start: *start, len: self.len, pings, spent, _pad: 0 };
    }

    /// Number of the `len` bytes at `seq` that are there already, and have to be the same.
    #[inline(always)]
    pub const fn known(&self, seq: u32, len: u32) -> u32 {
        let (mut known, mut i) = (0, 0);
        while i < RANGES {
            known += self.ranges[i].shared(seq, len).1;
            i += 1;
        }
        known
    }

    /// Check whether there is a place for the segment of `len` bytes at `seq`: it makes no gap too
    /// many and exceeds no limit. Where there is one gap already, none is made unless `more` is 1.
    #[inline(always)]
    pub const fn has_place(&self, seq: u32, len: u32, more: u32) -> bool {
        let end = seq.wrapping_add(len);
        let more = more | self.len.wrapping_sub(1) >> 31;
        let (mut first, mut last, mut place, mut i) = (seq, end, 0, 0);
        while i < RANGES {
            let range = &self.ranges[i];
            let exists = range.exists();
            let apart = earlier(end, range.begin) | earlier(range.end(), seq);
            place |= choose(exists, apart ^ 1, more);
            first = choose(exists & earlier(range.begin, first), range.begin, first);
            last = choose(exists & earlier(last, range.end()), range.end(), last);
            i += 1;
        }
        place != 0 && last.wrapping_sub(first) <= BYTES
    }

    /// Add the segment of `len` bytes at `seq`, which has a [place](Region::has_place); its bytes
    /// are in the copy.
    #[inline(always)]
    pub fn extend(&mut self, seq: u32, len: u32) {
        let (segment, mut known) = (seq.wrapping_add(len), 0);
        let (mut begin, mut end, mut i) = (seq, segment, 0);
        while i < RANGES {
            let range = self.ranges[i];
            let (first, last) = (range.begin, range.end());
            known += range.shared(seq, len).1;
            let apart = earlier(segment, first) | earlier(last, seq);
            let joins = range.exists() & (apart ^ 1);
            begin = choose(joins & earlier(first, begin), first, begin);
            end = choose(joins & earlier(end, last), last, end);
            self.ranges[i].len = choose(joins, 0, range.len);
            i += 1;
        }
        let (mut free, mut i) = (1, 0);
        while i < RANGES {
            let range = self.ranges[i];
            let here = free & (range.exists() ^ 1);
            self.ranges[i].begin = choose(here, begin, range.begin);
            self.ranges[i].len = choose(here, end.wrapping_sub(begin), range.len);
            free ^= here;
            i += 1;
        }
        self.len = self.len.wrapping_add(len).wrapping_sub(known);
    }

    /// The first range that begins after `seq`; without bytes if there is none.
    #[inline(always)]
    pub const fn next(&self, seq: u32) -> Range {
        let mut next = Range { begin: seq.wrapping_add(1 << 30), len: 0 };
        let mut i = 0;
        while i < RANGES {
            let Range { begin, len } = self.ranges[i];
            let is = earlier(seq, begin) & earlier(begin, next.begin) & self.ranges[i].exists();
            next.begin = choose(is, begin, next.begin);
            next.len = choose(is, len, next.len);
            i += 1;
        }
        next
    }

    /// Number of bytes of the walk's segment that are also in the region.
    #[inline(always)]
    pub fn overlap(&self, walk: &Walk) -> u32 {
        self.known(walk.base(), walk.len())
    }

    /// Mask of the pages in which it has bytes.
    #[inline(always)]
    pub const fn pages(&self) -> u32 {
        let (mut pages, mut i) = (0, 0);
        while i < RANGES {
            pages |= mask(self.ranges[i].begin, self.ranges[i].len);
            i += 1;
        }
        pages
    }

    /// Remove the ranges that the stream has reached, at `cursor` now.
    #[inline(always)]
    pub fn pass(&mut self, cursor: u32) {
        let (mut len, mut i) = (0, 0);
        while i < RANGES {
            let range = self.ranges[i];
            self.ranges[i].len = choose(earlier(cursor, range.begin), range.len, 0);
            len += self.ranges[i].len;
            i += 1;
        }
        self.len = len;
        // What the walk up to here has cost. Others that failed are to be paid for as long as something is left.
        let spent = self.look.spent.saturating_sub(1);
        (self.look.len, self.look.spent) = (0, if len == 0 { 0 } else { spent });
    }
}

impl Flow {
    /// Check whether out-of-order segments may pass: it is certain where the flow's frames are.
    #[inline(always)]
    pub fn may_hold(&self) -> bool {
        self.state == state::OPEN && !self.is_uncertain()
    }

    /// Let the segment at `seq` pass. `false` if the flow has changed meanwhile.
    #[inline(always)]
    pub fn hold(&mut self, seq: u32) -> bool {
        let gap = seq.wrapping_sub(self.client.resume());
        let behind = gap.wrapping_sub(1) < REACH && !before(seq, self.high);
        let holds = behind & self.may_hold();
        self.held |= holds as u8;
        holds
    }

    /// Check whether the filler of a gap may pass, with its number of `traces`: there is room for them
    /// and for two more. Those of what it is followed by may give way, but not the filler's own nor the
    /// first behind it, which tells where it ends: it may skip a part of the gap.
    #[inline(always)]
    pub const fn may_fill(&self, traces: u32) -> bool {
        let most = if self.trail == 0 { FEWEST } else { traces };
        most + 1 < self.room()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filler may reach a range whose walk fails, and another one pass before that range.
    #[test]
    fn walks_that_failed_are_not_forgotten_while_a_range_is_left() {
        let mut region = Region::default();
        region.extend(100, 1);
        region.extend(200, 1000);
        let start = Tracker::new(0, 0);
        region.looked(&start, Look::FAILED);
        region.pass(150);
        let spent = region.look.spent;
        assert!(region.len != 0 && spent >= MOST_LOOKS / 2 - 1, "{spent}");
        region.looked(&start, Look::FAILED);
        region.extend(160, 1);
        region.looked(&start, Look::FAILED);
        assert_eq!(region.recall(&Tracker::new(1, 0)), Some(Look::FAILED));
        region.pass(2000);
        assert_eq!((region.len, region.look.spent), (0, 0));
    }
}
