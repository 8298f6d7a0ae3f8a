//! What comes behind a gap: it passes, a copy of it stays, and what fills the gap is judged by both.
//!
//! A server delivers nothing behind a gap before the gap is filled. So segments past the cursor may
//! pass, if the guard keeps their bytes: whatever takes the cursor to where these begin, the filler,
//! passes only if the frames that follow from there keep to the limit.
//!
//! ```text
//!  ───────────┬ ─ ─ ─ ─ ─ ─ ─┬──────┬────────┬─────▶ sequence numbers
//!          cursor    gap   begin   cut      end
//!                            └ let through, kept ┘
//! ```
//!
//! One [`Region`] a flow, without holes. Bytes that come twice have to be the same, or nobody knew
//! which of them the server holds. What is at the server cannot be defused any more: all pings of a
//! region pass, or its filler does not.

use crate::{
    checkpoint::{CHECKPOINTS, MERGED},
    flow::{Flow, REWOUND, state},
    frame::SHORTEST_MASKED,
    maps::FlowKey,
    seq::{after, before},
    tracker::{Tracker, Walk},
    trail::TOGETHER,
};

/// Bytes that one flow can have behind its gap, a power of two.
pub const BYTES: u32 = 65_536;
/// Bytes that a gap can have, if what is behind it is to be kept. A window that a server has open, or
/// less: somebody who does not see the connection must not be able to guess a place.
pub const REACH: u32 = 4 * BYTES;
/// Segments that these can have come in.
pub const CUTS: usize = 64;
/// Bytes of a segment, as it comes again, on any path but a loopback interface's.
const LONGEST_FILLER: u32 = 9000;
/// Bytes that are copied at a time. A copy has so many to spare: the verifier knows where a piece
/// begins and how long it is only each by itself.
pub const PIECE: u32 = 512;
/// Flows that can have something behind a gap at once, a power of two.
pub const SLOTS: u32 = 128;

/// The copy of what one flow has behind its gap.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Held {
    /// 1 while a CPU is at it. No other one touches the flow's stream then.
    pub busy: u32,
    pub _pad: u32,
    /// Whose it is, [`owner`]; 0 for nobody's.
    pub owner: u64,
    /// The connection that it is of. As long as that has something behind its gap, no other one gets
    /// the copy: what is at the server could not be judged any more.
    pub key: FlowKey,
    pub _pad1: u32,
    pub region: Region,
    /// The bytes of the region, from its first one on.
    pub bytes: [u8; (BYTES + PIECE) as usize],
}

impl Default for Held {
    /// Nobody's.
    fn default() -> Held {
        let (bytes, region) = ([0; (BYTES + PIECE) as usize], Region::default());
        Held { busy: 0, _pad: 0, owner: 0, key: FlowKey::default(), _pad1: 0, region, bytes }
    }
}

/// Where the kept bytes lie, and where their segments ended.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Sequence number of the first byte.
    pub begin: u32,
    /// How many bytes there are; 0 for an empty region.
    pub len: u32,
    /// How many segments they came in.
    pub cuts: u32,
    /// Not 0: a segment began inside another one, of which the server may hold the first bytes, the
    /// last ones, or none.
    pub ragged: u32,
    /// Where each of the segments ends, counted from `begin`; ascending.
    pub ends: [u32; CUTS],
    pub look: Look,
}

/// What the latest walk through the region came to. It takes long, and a sender may send what fills its
/// gap again and again.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Look {
    /// Where the stream stood in front of the region, if it was...
    pub start: Tracker,
    /// ...of this length; 0 for no look so far.
    pub len: u32,
    /// Pings that were found, or [`Look::FAILED`].
    pub pings: u32,
    /// How much all looks took, in walks through the region: of [`MOST_LOOKS`].
    pub spent: u32,
    pub _pad: u32,
}

/// Walks through a region before what fills its gap is refused unseen. An honest sender's comes again the
/// same, and is not walked again.
pub const MOST_LOOKS: u32 = 8;

impl Look {
    /// The walk did not come to the region's end.
    pub const FAILED: u32 = u32::MAX;
}

const _: () = {
    assert!(BYTES.is_power_of_two() && SLOTS.is_power_of_two() && CUTS.is_power_of_two());
    assert!(size_of::<Held>() == 56 + 16 + 4 * CUTS + size_of::<Look>() + (BYTES + PIECE) as usize);
};

/// Who may use a copy: the connection and its [`Flow::generation`]. Never 0.
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

/// The place of an [`owner`]'s copy, which it shares with others.
#[inline(always)]
pub const fn slot(owner: u64) -> u32 {
    (owner ^ owner >> 32).wrapping_mul(0x9E37_79B1) as u32 >> (32 - SLOTS.trailing_zeros())
}

/// The smaller of two.
#[inline(always)]
const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Traces that `len` bytes of frames of the common kind leave at most, in [`CUTS`] segments, each of which
/// may cut a header and leave the next trace unfilled.
#[inline(always)]
const fn most_traces(len: u32) -> u32 {
    len / (SHORTEST_MASKED * TOGETHER) + 2 * CUTS as u32
}

impl Default for Region {
    /// An empty one.
    fn default() -> Region {
        let ends = [0; CUTS];
        Region { begin: 0, len: 0, cuts: 0, ragged: 0, ends, look: Look::default() }
    }
}

impl Region {
    /// Sequence number behind the last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.begin.wrapping_add(self.len)
    }

    /// Forget all.
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.len, self.cuts, self.ragged) = (0, 0, 0);
        (self.look.len, self.look.spent) = (0, 0);
    }

    /// What a walk through the region from `start` on comes to, as far as that is known: the pings in it,
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

    /// A walk through the region from `start` on found `pings`, or [`Look::FAILED`].
    #[inline(always)]
    pub fn looked(&mut self, start: &Tracker, pings: u32) {
        let spent = if pings == Look::FAILED { MOST_LOOKS / 2 } else { 1 };
        let spent = self.look.spent.saturating_add(spent);
        self.look = Look { start: *start, len: self.len, pings, spent, _pad: 0 };
    }

    /// Where in the copy a segment of `len` bytes at `seq` goes; `None` where it cannot be kept: there
    /// would be a second gap, or too much.
    #[inline(always)]
    pub const fn place(&self, seq: u32, len: u32) -> Option<u32> {
        let at = if self.len == 0 { 0 } else { seq.wrapping_sub(self.begin) };
        if at > self.len || at >= BYTES || len > BYTES - at {
            return None;
        }
        let grows = at + len > self.len;
        if grows && self.cuts >= CUTS as u32 { None } else { Some(at) }
    }

    /// So many of `len` bytes that go to `at` are there already, and have to be the same.
    #[inline(always)]
    pub const fn known(&self, at: u32, len: u32) -> u32 {
        least(self.len.saturating_sub(at), len)
    }

    /// The bytes of the segment at `seq` are in the copy at `at`.
    #[inline(always)]
    pub fn extend(&mut self, seq: u32, at: u32, len: u32) {
        if self.len == 0 {
            self.begin = seq;
        }
        self.ragged |= ((at != 0) & (at != self.len)) as u32;
        let end = at.wrapping_add(len);
        if end > self.len {
            self.ends[self.cuts as usize & (CUTS - 1)] = end;
            self.cuts += 1;
            self.len = end;
        }
    }

    /// The walk takes the stream to the region or past its beginning: it is that of the filler.
    #[inline(always)]
    pub fn is_reached(&self, walk: &Walk) -> bool {
        !before(walk.tracker.resume(), self.begin)
    }

    /// So many bytes of the walk's segment lie in the region as well.
    #[inline(always)]
    pub fn overlap(&self, walk: &Walk) -> u32 {
        let past = walk.end().wrapping_sub(self.begin);
        if after(walk.end(), self.begin) { least(past, self.len) } else { 0 }
    }

    /// First byte and length of the segment `cut`.
    #[inline(always)]
    pub fn cut(&self, cut: u32) -> (u32, u32) {
        let from = match cut {
            0 => 0,
            cut => self.ends[cut.wrapping_sub(1) as usize & (CUTS - 1)],
        };
        let to = self.ends[cut as usize & (CUTS - 1)];
        (self.begin.wrapping_add(from), to.wrapping_sub(from))
    }
}

impl Flow {
    /// What comes behind a gap may pass: it is certain where the flow's frames are.
    #[inline(always)]
    pub fn may_hold(&self) -> bool {
        self.state == state::OPEN && !self.is_uncertain() && self.flags & REWOUND == 0
    }

    /// A segment at `seq` is in the copy, which has `len` bytes with it: it passes, unless things have
    /// changed meanwhile, or the trail may have no room for all frames in them.
    #[inline(always)]
    pub fn hold(&mut self, seq: u32, len: u32) -> bool {
        let first = self.held == 0;
        let gap = seq.wrapping_sub(self.client.resume());
        let behind = gap.wrapping_sub(1) < REACH && !(first & before(seq, self.high));
        let fits = most_traces(len + LONGEST_FILLER) <= self.trail_room();
        let holds = behind & fits & self.may_hold();
        self.held |= holds as u8;
        holds
    }

    /// The filler of `region`, which leaves so many traces, may pass. Not where it skips a part of the
    /// gap, which is payload then, and too many segments wait for their acknowledgement: what comes to
    /// fill it would lie inside a merged checkpoint. And not where the trail may have no room, before
    /// the server has acknowledged what came earlier.
    #[inline(always)]
    pub fn may_fill(&self, walk: &Walk, region: &Region, traces: u32) -> bool {
        let skips = before(walk.end(), region.begin) & (self.kept as usize + 2 > CHECKPOINTS);
        let fits = traces + most_traces(region.len) <= self.trail_room();
        !skips & fits
    }

    /// The filler of `region` was committed. Where it overlaps the region it must not come again in
    /// parts: of what it was sent over the server may hold anything.
    #[inline(always)]
    pub fn filled(&mut self, overlaps: bool) {
        if overlaps {
            self.newest().flags |= MERGED;
        }
    }

    /// The segment `cut` of the region comes into the stream: `walk` went through it from where the
    /// flow stood. `false` when there is nothing of the stream to follow in it.
    #[inline(always)]
    pub fn commit_cut(&mut self, walk: &Walk, ragged: bool) {
        let before = self.client;
        let progress = after(walk.tracker.resume(), before.resume());
        self.commit(&before, walk, walk.pings);
        if ragged & progress {
            self.newest().flags |= MERGED;
        }
    }
}
