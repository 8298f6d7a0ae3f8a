//! Hints for the kernel's verifier, which mean nothing elsewhere.

use core::hint::black_box;

/// `value`, of which the verifier forgets what it knows: where it has come in many ways to one place
/// it goes on from there once, and not once for each value. `unknown` is any number that it does not
/// know.
#[inline(always)]
pub fn forget(value: u32, unknown: u32) -> u32 {
    black_box(value ^ unknown) ^ unknown
}
