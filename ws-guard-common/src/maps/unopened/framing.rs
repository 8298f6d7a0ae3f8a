//! Places of a chunked body's framing, and holes in its data.

use crate::{
    chunks::Chunks,
    seq::{after, before, later},
};

/// Number of places in [`Framing`], a power of two.
pub(super) const PLACES: usize = 4;
/// Number of holes in [`Framing`], a power of two.
pub(super) const HOLES: usize = 4;

/// Latest places of a chunked body's framing that was read, one a segment, and latest holes in its data.
///
/// The server may not have taken the framing, and take other bytes in its place. What is sent again elsewhere
/// is data to the server, too.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Framing {
    places: [Place; PLACES],
    holes: [Hole; HOLES],
    /// Number of the oldest place, and of the oldest hole; modulo [`PLACES`] and [`HOLES`].
    oldest: u16,
    oldest_hole: u16,
    /// End of the latest place that is forgotten: everything in front may be framing, except in holes.
    pub(super) forgotten: u32,
}

/// Framing in a segment: of one chunk, or of several with their data.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Place {
    from: u32,
    /// Its length, at most [`LONGEST`], and the reader in front of it: [`Chunks::pack`].
    len: u16,
    state: u16,
    size: u32,
}

/// Longest framing that has a place.
const LONGEST: u32 = u16::MAX as u32;

/// Bytes that had not passed when those behind them did: data, because framing is read in order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Hole {
    from: u32,
    to: u32,
}

impl Hole {
    /// The highest bit: not all bytes from `seq` to `end` are within it.
    #[inline(always)]
    const fn exceeded(&self, seq: u32, end: u32) -> u32 {
        seq.wrapping_sub(self.from) | self.to.wrapping_sub(end)
    }

    /// Itself; empty where the server, which has the client's bytes up to `acked`, has it all. Without branches.
    #[inline(always)]
    const fn missing(self, acked: u32) -> Hole {
        let missing = (acked.wrapping_sub(self.to) as i32 >> 31) as u32;
        Hole { from: self.from, to: self.to & missing | self.from & !missing }
    }
}

impl Place {
    #[inline(always)]
    const fn new(from: u32, len: u32, before: Chunks) -> Place {
        let (size, state) = before.pack();
        Place { from, len: len as u16, state, size }
    }

    #[inline(always)]
    const fn to(&self) -> u32 {
        self.from.wrapping_add(self.len as u32)
    }

    /// Reader in front of it.
    #[inline(always)]
    const fn before(&self) -> Chunks {
        Chunks::unpack(self.size, self.state)
    }

    /// The highest bit: the segment has a byte of this, and the server, which has the client's bytes up to
    /// `acked`, has not taken all of it.
    ///
    /// Without branches, each of which would double the verifier's work.
    #[inline(always)]
    const fn touched(&self, seq: u32, end: u32, acked: u32) -> u32 {
        let (from, to) = (self.from, self.to());
        let overlaps = seq.wrapping_sub(to) & from.wrapping_sub(end);
        let unproven = acked.wrapping_sub(to) & acked.wrapping_sub(end);
        let not_empty = from.wrapping_sub(to);
        overlaps & unproven & not_empty
    }
}

/// `at` where it lies behind `from` and not behind `to`, otherwise `from`. Without branches, as above.
#[inline(always)]
const fn between(from: u32, at: u32, to: u32) -> u32 {
    let later = from.wrapping_sub(at) & !to.wrapping_sub(at);
    let mask = (later as i32 >> 31) as u32;
    from & !mask | at & mask
}

impl Framing {
    #[inline(always)]
    pub const fn new(first: u32) -> Framing {
        let none = Place::new(first, 0, Chunks::NONE);
        let hole = Hole { from: first, to: first };
        Framing {
            places: [none; PLACES],
            holes: [hole; HOLES],
            oldest: 0,
            oldest_hole: 0,
            forgotten: first,
        }
    }

    /// Forget all places and holes: another body begins at `first`.
    #[inline(always)]
    pub const fn clear(&mut self, first: u32) {
        let mut at = 0;
        while at < PLACES {
            self.places[at] = Place::new(first, 0, Chunks::NONE);
            at += 1;
        }
        at = 0;
        while at < HOLES {
            self.holes[at] = Hole { from: first, to: first };
            at += 1;
        }
        self.forgotten = first;
    }

    /// Add the latest place, with the reader `before` it. `acked` is the end of the bytes that the server has:
    /// holes in front of it are forgotten, before their numbers come again.
    #[inline(always)]
    pub const fn add(&mut self, from: u32, to: u32, before: Chunks, acked: u32) {
        let at = self.oldest as usize & (PLACES - 1);
        let len = to.wrapping_sub(from);
        let long = len > LONGEST;
        let older = later(self.forgotten, self.places[at].to());
        self.forgotten = if long { to } else { older };
        self.places[at] = Place::new(from, if long { 0 } else { len }, before);
        self.oldest = self.oldest.wrapping_add(1);
        let mut at = 0;
        while at < HOLES {
            self.holes[at] = self.holes[at].missing(acked);
            at += 1;
        }
    }

    /// Add a hole in front of a segment at `seq`, behind bytes that passed up to `high`. Framing that was read there, in
    /// a segment that did not pass, is not in it.
    #[inline(always)]
    pub const fn skip(&mut self, high: u32, seq: u32) {
        let mut from = between(high, self.forgotten, seq);
        let mut at = 0;
        while at < PLACES {
            from = between(from, self.places[at].to(), seq);
            at += 1;
        }
        self.holes[self.oldest_hole as usize & (HOLES - 1)] = Hole { from, to: seq };
        self.oldest_hole = self.oldest_hole.wrapping_add(1);
    }

    /// Check whether there is no place for another hole in front of framing: the server, which has the client's bytes up
    /// to `acked`, has none of those that are kept whole.
    #[inline(always)]
    pub const fn is_full(&self, acked: u32) -> bool {
        let newest = self.places[self.oldest.wrapping_sub(1) as usize & (PLACES - 1)];
        let oldest = self.holes[self.oldest_hole as usize & (HOLES - 1)].missing(acked);
        newest.len != 0 && oldest.from != oldest.to
    }

    /// Check whether all bytes of the segment from `seq` to `end` are data that filled or fills a hole.
    #[inline(always)]
    pub const fn fills(&self, seq: u32, end: u32) -> bool {
        let mut exceeded = u32::MAX;
        let mut at = 0;
        while at < HOLES {
            exceeded &= self.holes[at].exceeded(seq, end);
            at += 1;
        }
        exceeded >> 31 == 0
    }

    /// Check whether the segment from `seq` to `end` may have other bytes for framing that the server, which
    /// has the client's bytes up to `acked`, has not taken.
    #[inline(always)]
    pub const fn touches(&self, seq: u32, end: u32, acked: u32) -> bool {
        let mut touches = 0;
        let mut at = 0;
        while at < PLACES {
            touches |= self.places[at].touched(seq, end, acked);
            at += 1;
        }
        touches >> 31 != 0 || self.is_forgotten(seq, acked)
    }

    /// Check whether there may be framing behind `seq` whose place is forgotten.
    #[inline(always)]
    const fn is_forgotten(&self, seq: u32, acked: u32) -> bool {
        after(self.forgotten, acked) && before(seq, self.forgotten)
    }

    /// The first byte of the first framing in a segment from `seq` to `end` that the server, which has the
    /// client's bytes up to `acked`, has not taken; with the reader before it. `None` where it is not known, or
    /// not all of it is in the segment.
    #[inline(always)]
    pub const fn first_in(&self, seq: u32, end: u32, acked: u32) -> Option<(u32, Chunks)> {
        let (mut any, mut first) = (0, 0);
        let mut age = PLACES as u32;
        // The oldest one is the last to be looked at.
        while age > 0 {
            age -= 1;
            let at = (self.oldest as u32).wrapping_add(age) & (PLACES as u32 - 1);
            let touched = self.places[at as usize].touched(seq, end, acked);
            let mask = (touched as i32 >> 31) as u32;
            first = (first & !mask) | (at & mask);
            any |= touched;
        }
        let place = self.places[first as usize & (PLACES - 1)];
        let (from, to, reader) = (place.from, place.to(), place.before());
        let whole = !before(from, seq) && !after(to, end) && reader.is_open();
        if any >> 31 == 0 || !whole || self.is_forgotten(seq, acked) {
            return None;
        }
        Some((from, reader))
    }

    /// Check whether the framing from `from` to `to` is known, and followed by that at `next`, or by `last`,
    /// with this `reader`.
    #[inline(always)]
    pub const fn is_known(
        &self,
        from: u32,
        to: u32,
        next: (u32, Chunks),
        last: (u32, Chunks),
    ) -> bool {
        let mut known = false;
        let mut at = 0;
        while at < PLACES {
            let place = self.places[at];
            let following = self.places[(at + 1) & (PLACES - 1)];
            let newest = self.oldest.wrapping_sub(1) as usize & (PLACES - 1) == at;
            let then = if newest { last } else { (following.from, following.before()) };
            known |=
                place.from == from && place.to() == to && then.0 == next.0 && then.1.is(&next.1);
            at += 1;
        }
        known
    }
}
