//! Places of a chunked body's framing.

use crate::{
    chunks::Chunks,
    seq::{after, before},
};

/// Number of places in [`Framing`], a power of two.
pub(super) const PLACES: usize = 4;

/// Latest places of a chunked body's framing that was read, one a segment.
///
/// The server may not have taken it, and take other bytes in its place. What is sent again elsewhere is data
/// to the server, too.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Framing {
    places: [Place; PLACES],
    /// Number of the oldest one, modulo [`PLACES`].
    oldest: u32,
    /// End of the latest one that is forgotten: everything in front may be framing.
    pub(super) forgotten: u32,
}

/// Framing in a segment: of one chunk, or of several with their data.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Place {
    from: u32,
    to: u32,
    /// Reader in front of it.
    before: Chunks,
}

impl Place {
    /// The highest bit: the segment has a byte of this, and the server, which has the client's bytes up to
    /// `acked`, has not taken all of it.
    ///
    /// Without branches, each of which would double the verifier's work.
    #[inline(always)]
    const fn touched(&self, seq: u32, end: u32, acked: u32) -> u32 {
        let Place { from, to, .. } = *self;
        let overlaps = seq.wrapping_sub(to) & from.wrapping_sub(end);
        let unproven = acked.wrapping_sub(to) & acked.wrapping_sub(end);
        let not_empty = from.wrapping_sub(to);
        overlaps & unproven & not_empty
    }
}

impl Framing {
    #[inline(always)]
    pub const fn new(first: u32) -> Framing {
        let none = Place { from: first, to: first, before: Chunks::NONE };
        Framing { places: [none; PLACES], oldest: 0, forgotten: first }
    }

    /// Forget all places: another body begins at `first`.
    #[inline(always)]
    pub const fn clear(&mut self, first: u32) {
        let mut at = 0;
        while at < PLACES {
            self.places[at] = Place { from: first, to: first, before: Chunks::NONE };
            at += 1;
        }
        self.forgotten = first;
    }

    /// Add the latest place, with the reader `before` it.
    #[inline(always)]
    pub const fn add(&mut self, from: u32, to: u32, before: Chunks) {
        let at = self.oldest as usize & (PLACES - 1);
        self.forgotten = self.places[at].to;
        self.places[at] = Place { from, to, before };
        self.oldest = self.oldest.wrapping_add(1);
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
            let at = self.oldest.wrapping_add(age) & (PLACES as u32 - 1);
            let touched = self.places[at as usize].touched(seq, end, acked);
            let mask = (touched as i32 >> 31) as u32;
            first = (first & !mask) | (at & mask);
            any |= touched;
        }
        let Place { from, to, before: reader } = self.places[first as usize & (PLACES - 1)];
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
            let then = if newest { last } else { (following.from, following.before) };
            known |= place.from == from && place.to == to && then.0 == next.0 && then.1.is(&next.1);
            at += 1;
        }
        known
    }
}
