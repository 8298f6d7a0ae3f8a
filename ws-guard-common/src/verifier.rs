//! Hints for the kernel's verifier, without effect elsewhere.

use core::hint::black_box;

/// Make the verifier forget what it knows of `value`: paths that meet here continue as one, not as
/// one for each value. `unknown` is any number that it does not know.
#[inline(always)]
pub fn forget(value: u32, unknown: u32) -> u32 {
    black_box(value ^ unknown) ^ unknown
}
