//! TCP sequence number arithmetic, RFC 9293, 3.4: 32 bits, modulo 2³².
//!
//! Two numbers compare only while they are less than 2³¹ apart.

/// Check whether `a` is before `b` in the sequence space.
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Check whether `a` is after `b` in the sequence space.
#[inline(always)]
pub const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The later one of two sequence numbers.
#[inline(always)]
pub const fn later(a: u32, b: u32) -> u32 {
    if before(a, b) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_wrap_around() {
        assert!(before(0xffff_fff0, 0x10));
        assert!(after(0x10, 0xffff_fff0));
        assert!(!before(7, 7) && !after(7, 7));
        assert_eq!(later(0xffff_ffff, 0), 0);
    }
}
