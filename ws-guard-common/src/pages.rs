//! Pages of the copies of out-of-order segments ([`crate::out_of_order`]).
//!
//! A copy is a ring of [`PLACES`] pages, of which it has those in which there are bytes. Each slot has
//! [`OWN`] pages, which no other copy gets, and borrows others from a common pool as long as it needs
//! them. A segment for which no page is to be had is not kept.

use crate::out_of_order::{BYTES, SLOTS, choose, earlier};

/// Bytes of a page, a power of two.
pub const PAGE: u32 = 16_384;
/// Pages in the ring of a copy.
pub const PLACES: usize = (BYTES / PAGE) as usize;
/// Pages of a slot's own, a power of two.
pub const OWN: u32 = 4;
/// Pages that slots may borrow, a power of two.
pub const POOL: u32 = 64;
/// Number of all pages: the slots' own ones, and then the pool's.
pub const ALL: u32 = SLOTS * OWN + POOL;
/// Pages of the pool that are tried for a place.
pub const TRIES: u32 = 8;
/// Bytes per copy, and spare bytes at a page's end: the verifier knows start and length of a piece only
/// separately.
pub const PIECE: u32 = 512;

/// Page of a copy.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Page {
    /// Number plus 1 of the slot that has borrowed it; 0 for none. Without meaning in a slot's own.
    pub borrower: u32,
    pub _pad: u32,
    /// Each byte at its sequence number modulo [`PAGE`].
    pub bytes: [u8; (PAGE + PIECE) as usize],
}

impl Default for Page {
    /// Borrowed by none.
    fn default() -> Page {
        Page { borrower: 0, _pad: 0, bytes: [0; (PAGE + PIECE) as usize] }
    }
}

/// Pages of one copy: for each place in its ring the number of a page plus 1, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pages(pub [u32; PLACES]);

const _: () = {
    assert!(PAGE.is_power_of_two() && OWN.is_power_of_two() && POOL.is_power_of_two());
    // Places fit in half a word.
    assert!(PLACES == 16);
    assert!(size_of::<Page>() == 8 + (PAGE + PIECE) as usize);
};

/// Place in the ring of the page for the byte with that sequence number.
#[inline(always)]
pub const fn place(seq: u32) -> u32 {
    (seq / PAGE) & (PLACES as u32 - 1)
}

/// Mask of the places in which the `len` bytes at `seq` are.
///
/// Without a branch, as all that follows: the kernel's verifier would follow both sides.
#[inline(always)]
pub const fn mask(seq: u32, len: u32) -> u32 {
    const PLACES: u32 = self::PLACES as u32;
    let some = len.wrapping_neg() >> 31;
    let last = (seq & (PAGE - 1)).wrapping_add(len).wrapping_add(PAGE - 1);
    let count = (last / PAGE) & some.wrapping_neg();
    let count = choose(earlier(count, PLACES), count, PLACES) & (2 * PLACES - 1);
    let (places, first) = ((1 << count) - 1u32, place(seq));
    (places << first | places >> (PLACES - first)) & ((1 << PLACES) - 1)
}

/// Page number `i` of those in the pool that are tried for that place of a slot, plus 1.
#[inline(always)]
pub const fn lent(slot: u32, place: u32, i: u32) -> u32 {
    let hash = (slot * PLACES as u32 + place).wrapping_mul(0x9E37_79B1);
    let first = hash >> (32 - POOL.trailing_zeros());
    SLOTS * OWN + (first.wrapping_add(i) & (POOL - 1)) + 1
}

/// 1 if the page of that number plus 1 is from the pool, otherwise 0.
#[inline(always)]
pub const fn is_lent(number: u32) -> u32 {
    (SLOTS * OWN).wrapping_sub(number) >> 31
}

impl Pages {
    /// Number plus 1 of the page at that place; 0 for none.
    #[inline(always)]
    pub const fn at(&self, place: u32) -> u32 {
        self.0[place as usize & (PLACES - 1)]
    }

    /// Set it.
    #[inline(always)]
    pub const fn put(&mut self, place: u32, number: u32) {
        self.0[place as usize & (PLACES - 1)] = number;
    }

    /// Mask of the places that have a page.
    #[inline(always)]
    pub const fn have(&self) -> u32 {
        let (mut mask, mut i) = (0, 0);
        while i < PLACES {
            mask |= (self.0[i].wrapping_neg() >> 31) << i;
            i += 1;
        }
        mask
    }

    /// Number plus 1 of a page of that slot's own that is at no place; 0 if there is none.
    #[inline(always)]
    pub const fn own(&self, slot: u32) -> u32 {
        let first = slot * OWN + 1;
        let (mut used, mut i) = (0, 0);
        while i < PLACES {
            let own = self.0[i].wrapping_sub(first);
            let is_own = ((own as u64).wrapping_sub(OWN as u64) >> 63) as u32;
            used |= is_own << (own & (OWN - 1));
            i += 1;
        }
        let (mut number, mut i) = (0, 0);
        while i < OWN {
            number = choose(used >> i & 1, number, first + i);
            i += 1;
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_places_of_all_bytes() {
        for (seq, len) in [
            (0, 1),
            (PAGE - 1, 1),
            (PAGE - 1, 2),
            (5, 0),
            (PAGE, 0),
            (15 * PAGE + 7, PAGE),
            (15 * PAGE, PAGE + 1),
            (3 * PAGE + 1, 65_535),
            (u32::MAX, 2),
            (u32::MAX - 70_000, 140_000),
            (9, BYTES),
            (9 * PAGE, BYTES),
            (9 * PAGE + 1, BYTES - 1),
            (9 * PAGE + 1, BYTES - PAGE),
        ] {
            let places = (0..len).map(|at| 1 << place(seq.wrapping_add(at)));
            assert_eq!(mask(seq, len), places.fold(0, |mask, bit| mask | bit), "{seq} + {len}");
        }
    }

    #[test]
    fn a_slot_has_its_own_pages_and_then_the_pools() {
        for slot in [0, 1, SLOTS - 1] {
            let mut pages = Pages::default();
            for place in 0..OWN {
                let number = pages.own(slot);
                assert!((slot * OWN + 1..=slot * OWN + OWN).contains(&number));
                assert_eq!(is_lent(number), 0);
                pages.put(place * 3, number);
                assert_eq!(pages.at(place * 3), number);
            }
            assert_eq!((pages.own(slot), pages.have()), (0, 0b10_0100_1001));
            let mut pool: Vec<u32> = (0..POOL).map(|i| lent(slot, 5, i)).collect();
            pool.sort_unstable();
            assert!(pool.into_iter().eq(SLOTS * OWN + 1..=ALL));
            assert_eq!(is_lent(lent(slot, 5, 0)), 1);
            let third = pages.at(3);
            pages.put(3, lent(slot, 3, 0));
            assert_eq!(pages.own(slot), third, "it is free again");
            assert_eq!(Pages::default().own(slot), slot * OWN + OWN);
        }
    }

    /// No page has two borrowers, and all come back.
    #[test]
    fn two_copies_share_the_pool() {
        let mut borrowers = [0u32; ALL as usize];
        let mut copies = [Pages::default(); 8];
        let mut borrow = |copies: &mut [Pages; 8], slot: usize, place: u32| {
            let number = match copies[slot].own(slot as u32) {
                0 => (0..TRIES)
                    .map(|i| lent(slot as u32, place, i))
                    .find(|number| borrowers[*number as usize - 1] == 0)?,
                own => own,
            };
            assert_eq!(borrowers[number as usize - 1], 0);
            borrowers[number as usize - 1] = slot as u32 + 1;
            copies[slot].put(place, number);
            Some(number)
        };
        let mut got = 0;
        for place in 0..PLACES as u32 {
            for slot in 0..8 {
                got += u32::from(borrow(&mut copies, slot, place).is_some());
            }
        }
        // The slots' own ones, and nearly the whole pool.
        assert!(got > 8 * OWN + POOL * 7 / 8, "{got}");
        for copy in &mut copies {
            for place in 0..PLACES as u32 {
                if let Some(index) = copy.at(place).checked_sub(1) {
                    borrowers[index as usize] = 0;
                    copy.put(place, 0);
                }
            }
        }
        assert_eq!(borrowers, [0; ALL as usize]);
    }
}
