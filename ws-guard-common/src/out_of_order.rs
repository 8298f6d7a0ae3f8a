//! Out-of-order segments: pass them and keep a copy, to judge the filler of the gap by both.
//!
//! A server delivers nothing past a gap before the gap is filled. So segments past the cursor may
//! pass if the guard keeps a copy of them. The filler, the segment that takes the cursor to the
//! first kept byte, passes only if the frames from there on keep to the limit.
//!
//! ```text
//!  ───────────┬ ─ ─ ─ ─ ─ ─ ─┬──────┬────────┬─────▶ sequence numbers
//!          cursor    gap   begin   cut      end
//!                            └ let through, kept ┘
//! ```
//!
//! One [`Region`] a flow, without holes. Bytes received twice have to be the same, or it would be
//! unknown which of them the server holds. What the server has cannot be defused any more: all
//! pings of a region pass, or its filler does not.

use crate::{
    checkpoint::{CHECKPOINTS, MERGED},
    flow::{Flow, REWOUND, state},
    frame::SHORTEST_MASKED,
    maps::FlowKey,
    seq::{after, before},
    tracker::{Tracker, Walk},
    trail::TOGETHER,
};

/// Maximum of out-of-order bytes of one flow, a power of two.
pub const BYTES: u32 = 65_536;
/// Maximum length of a gap before kept segments: a server's window or less, so that an off-path
/// attacker cannot guess a sequence number in it.
pub const REACH: u32 = 4 * BYTES;
/// Maximum of kept segments of one flow.
pub const CUTS: usize = 64;
/// Maximum length of a retransmission on any path but a loopback interface's.
const LONGEST_FILLER: u32 = 9000;
/// Bytes per copy, and spare bytes at its end: the verifier knows start and length of a piece only
/// separately.
pub const PIECE: u32 = 512;
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
    /// Bytes of the region.
    pub bytes: [u8; (BYTES + PIECE) as usize],
}

impl Default for Held {
    /// Without an owner.
    fn default() -> Held {
        let (bytes, region) = ([0; (BYTES + PIECE) as usize], Region::default());
        Held { busy: 0, _pad: 0, owner: 0, key: FlowKey::default(), _pad1: 0, region, bytes }
    }
}

/// Range of the kept bytes, and the ends of their segments.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    /// Sequence number of the first byte.
    pub begin: u32,
    /// Number of bytes; 0 for an empty region.
    pub len: u32,
    /// Number of segments.
    pub cuts: u32,
    /// Not 0: a segment began inside another one, so that the server may hold that one's first
    /// bytes, last ones, or none.
    pub ragged: u32,
    /// End of each segment, relative to `begin`; ascending.
    pub ends: [u32; CUTS],
    pub look: Look,
}

/// Result of the latest walk through the region.
/// Such a walk is expensive, and a sender may repeat the filler of its gap again and again.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Look {
    /// Tracker before the region...
    pub start: Tracker,
    /// ...of this length; 0 without a walk so far.
    pub len: u32,
    /// Number of pings, or [`Look::FAILED`].
    pub pings: u32,
    /// Cost of all walks so far: of [`MOST_LOOKS`].
    pub spent: u32,
    pub _pad: u32,
}

/// Maximum of walks through a region before its filler is refused unseen.
/// An honest sender retransmits the same filler, which needs no further walk.
pub const MOST_LOOKS: u32 = 8;

impl Look {
    /// The walk did not reach the region's end.
    pub const FAILED: u32 = u32::MAX;
}

const _: () = {
    assert!(BYTES.is_power_of_two() && SLOTS.is_power_of_two() && CUTS.is_power_of_two());
    assert!(size_of::<Held>() == 56 + 16 + 4 * CUTS + size_of::<Look>() + (BYTES + PIECE) as usize);
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

/// The smaller of two.
#[inline(always)]
const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

/// Maximum of traces of `len` bytes of common frames in [`CUTS`] segments, each of which may split
/// a header and leave the next trace unfilled.
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
    /// Sequence number after the last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.begin.wrapping_add(self.len)
    }

    /// Empty the region.
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.len, self.cuts, self.ragged) = (0, 0, 0);
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

    /// Offset in the copy for a segment of `len` bytes at `seq`; `None` where it would make a
    /// second gap or exceed the limits.
    #[inline(always)]
    pub const fn place(&self, seq: u32, len: u32) -> Option<u32> {
        let at = if self.len == 0 { 0 } else { seq.wrapping_sub(self.begin) };
        if at > self.len || at >= BYTES || len > BYTES - at {
            return None;
        }
        let grows = at + len > self.len;
        if grows && self.cuts >= CUTS as u32 { None } else { Some(at) }
    }

    /// Number of `len` bytes at offset `at` that are there already, and have to be the same.
    #[inline(always)]
    pub const fn known(&self, at: u32, len: u32) -> u32 {
        least(self.len.saturating_sub(at), len)
    }

    /// Add the segment at `seq` to the region; its bytes are in the copy at `at`.
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

    /// Check whether the walk reaches the region or passes its beginning: it is the filler's.
    #[inline(always)]
    pub fn is_reached(&self, walk: &Walk) -> bool {
        !before(walk.tracker.resume(), self.begin)
    }

    /// Number of bytes of the walk's segment that are also in the region.
    #[inline(always)]
    pub fn overlap(&self, walk: &Walk) -> u32 {
        let past = walk.end().wrapping_sub(self.begin);
        if after(walk.end(), self.begin) { least(past, self.len) } else { 0 }
    }

    /// First byte and length of segment `cut`.
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
    /// Check whether out-of-order segments may pass: it is certain where the flow's frames are.
    #[inline(always)]
    pub fn may_hold(&self) -> bool {
        self.state == state::OPEN && !self.is_uncertain() && self.flags & REWOUND == 0
    }

    /// Let the segment at `seq` pass, which is in the copy of then `len` bytes.
    /// `false` if the flow has changed meanwhile, or the trail may have no room for all its frames.
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

    /// Decide whether the filler of `region` may pass, with its number of `traces`.
    /// Not if it skips a part of the gap (payload) while too many segments are unacknowledged: the
    /// missing part would later be inside a merged checkpoint. And not if the trail may lack room
    /// before the server has acknowledged earlier bytes.
    #[inline(always)]
    pub fn may_fill(&self, walk: &Walk, region: &Region, traces: u32) -> bool {
        let skips = before(walk.end(), region.begin) & (self.kept as usize + 2 > CHECKPOINTS);
        let fits = traces + most_traces(region.len) <= self.trail_room();
        !skips & fits
    }

    /// Record the committed filler.
    /// If it overlaps the region it must not be retransmitted in parts: the server may hold either
    /// version of the overlap.
    #[inline(always)]
    pub fn filled(&mut self, overlaps: bool) {
        if overlaps {
            self.newest().flags |= MERGED;
        }
    }

    /// Commit a segment of the region after `walk` went through it from the flow's tracker.
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
