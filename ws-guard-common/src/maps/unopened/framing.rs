//! Places of a chunked body's framing.

use crate::{
    chunks::Chunks,
    seq::{after, before},
};

/// Number of places in [`Framing`], a power of two.
const PLACES: usize = 8;

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
    forgotten: u32,
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

impl Framing {
    #[inline(always)]
    pub const fn new(first: u32) -> Framing {
        let none = Place { from: first, to: first, before: Chunks::NONE };
        Framing { places: [none; PLACES], oldest: 0, forgotten: first }
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
        let mut touches = after(self.forgotten, acked) && before(seq, self.forgotten);
        let mut at = 0;
        while at < PLACES {
            let Place { from, to, .. } = self.places[at];
            touches |= after(to, acked) & before(seq, to) & after(end, from);
            at += 1;
        }
        touches && after(end, acked)
    }

    /// The first byte of the first framing in a segment from `seq` to `end`, with the reader before it. `None`
    /// where it has none, or not all of it.
    #[inline(always)]
    pub const fn first_in(&self, seq: u32, end: u32) -> Option<(u32, Chunks)> {
        let mut at = 0;
        while at < PLACES {
            let Place { from, to, before: reader } = self.places[at];
            if !before(from, seq) && !after(to, end) && reader.is_open() {
                return Some((from, reader));
            }
            at += 1;
        }
        None
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
