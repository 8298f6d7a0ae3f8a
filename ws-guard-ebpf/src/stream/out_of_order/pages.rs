//! Pages of the copies, [`ws_guard_common::pages`].
//!
//! The CPU that has entered a copy is alone with its pages' table. A page of the pool belongs to the slot
//! whose number it has, put there by compare-and-exchange.

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg},
};

use ws_guard_common::{
    out_of_order::{Held, SLOTS},
    pages::{PLACES, Page, TRIES, is_lent, lent, mask, place},
};

use crate::{
    maps::{HELD, PAGES},
    stream::out_of_order::{alone, entered, is_over, release as leave, takes},
};

/// The page with the byte of that sequence number.
#[inline(always)]
pub fn with(slot: &Held, seq: u32) -> Option<&'static mut Page> {
    let number = slot.pages.at(place(black_box(seq)));
    let page = PAGES.get_ptr_mut(number.wrapping_sub(1))?;
    // SAFETY: map values stay mapped while a program runs, and the CPU that has entered the copy is alone
    // with its pages.
    Some(unsafe { &mut *page })
}

/// Get a page for each of the `len` bytes at `seq`. `false` where one is not to be had.
#[inline(always)]
pub fn acquire(seq: u32, len: u32, now: u64) -> bool {
    ws_guard_pages_acquire(seq, len, now) != 0
}

/// [`acquire`], as a global function, like those below: the verifier checks each once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_pages_acquire(seq: u32, len: u32, now: u64) -> u32 {
    let Some((_, slot)) = entered() else {
        return 0;
    };
    let missing = mask(seq, len) & !slot.pages.have();
    if missing == 0 {
        return 1;
    }
    let mut i = 0;
    while i < PLACES as u32 {
        if missing >> i & 1 != 0 && ws_guard_page_acquire(i, now) == 0 {
            return 0;
        }
        i += 1;
    }
    1
}

/// Get a page for that place of the copy: one of the slot's own, or one from the pool.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_page_acquire(place: u32, now: u64) -> u32 {
    let Some((state, slot)) = entered() else {
        return 0;
    };
    let index = state.gap.copy.wrapping_sub(1) & (SLOTS - 1);
    let mut number = slot.pages.own(index);
    let mut i = 0;
    while number == 0 && i < TRIES {
        let next = lent(index, place, i);
        if ws_guard_page_borrow(next, index, now) != 0 {
            number = next;
        }
        i += 1;
    }
    slot.pages.put(black_box(place), number);
    (number != 0) as u32
}

/// Borrow the page of that number plus 1 for the copy in the slot `index`, unless another one needs it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_page_borrow(number: u32, index: u32, now: u64) -> u32 {
    let Some(page) = PAGES.get_ptr_mut(number.wrapping_sub(1)) else {
        return 0;
    };
    // SAFETY: an aligned word of a map value, which stays mapped while a program runs.
    let borrower = unsafe { (&raw const (*page).borrower).read_volatile() };
    if borrower != 0 && ws_guard_held_empty(borrower.wrapping_sub(1), now) == 0 {
        return 0;
    }
    // SAFETY: as above.
    let (_, is_free) = unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            &raw mut (*page).borrower,
            0,
            index.wrapping_add(1),
        )
    };
    is_free as u32
}

/// Empty the copy in the slot `index`, if its connection is gone or needs none any more.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_empty(index: u32, now: u64) -> u32 {
    // First not entered: its own flow's segments would be dropped meanwhile.
    if ws_guard_held_over(index, now) == 0 {
        return 0;
    }
    let Some(slot) = HELD.get_ptr_mut(index) else {
        return 0;
    };
    if !alone(slot) {
        return 0;
    }
    // SAFETY: entered by this CPU alone.
    let slot = unsafe { &mut *slot };
    let is_over = takes(slot, now);
    if is_over {
        slot.region.clear();
        slot.owner = 0;
        release(index, u32::MAX);
    }
    leave(slot);
    is_over as u32
}

/// Check whether the slot's connection is gone or needs no copy any more.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_held_over(index: u32, now: u64) -> u32 {
    let Some(slot) = HELD.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: words of a value that stays mapped while a program runs; a caller that relies on them enters
    // the slot and checks again.
    is_over(unsafe { &*slot }, now) as u32
}

/// Release the pages at the places of a mask, of the copy in the slot `index`, which this CPU has entered.
#[inline(always)]
pub fn release(index: u32, places: u32) {
    ws_guard_pages_release(index, places);
}

/// [`release`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_pages_release(index: u32, places: u32) -> u32 {
    let Some(slot) = HELD.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: entered by this CPU alone.
    let slot = unsafe { &mut *slot };
    let released = slot.pages.have() & places;
    if released == 0 {
        return 0;
    }
    let mut i = 0;
    while i < PLACES as u32 {
        if released >> i & 1 != 0 {
            ws_guard_page_release(slot.pages.at(i));
            slot.pages.put(i, 0);
        }
        i += 1;
    }
    released
}

/// Give the page of that number plus 1 back, if it is from the pool.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_page_release(number: u32) -> u32 {
    if is_lent(number) == 0 {
        return 0;
    }
    if let Some(page) = PAGES.get_ptr_mut(number.wrapping_sub(1)) {
        // SAFETY: an aligned word of a map value.
        unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(&raw mut (*page).borrower, 0) };
    }
    1
}

/// Release the pages in which the entered copy has no bytes any more.
#[inline(always)]
pub fn release_unused() {
    ws_guard_pages_unused();
}

/// [`release_unused`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_pages_unused() -> u32 {
    match entered() {
        Some((state, slot)) => {
            ws_guard_pages_release(state.gap.copy.wrapping_sub(1), !slot.region.pages())
        }
        None => 0,
    }
}
