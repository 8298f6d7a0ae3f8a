//! Mark of a tracker: a hash of the headers so far, with a secret of the flow.

/// Mark after a header whose first byte is at sequence number `at`, and whose length is `high`
/// above its lower 32 bits.
///
/// Two different headers in the same position give two marks, for any secret. Their difference
/// depends on the secret, or an attacker could choose the next two headers to cancel it. So the
/// secret is multiplied by itself, without losing any of it.
#[inline(always)]
pub(crate) const fn mark_after(before: u32, at: u32, first: u8, second: u8, high: u32) -> u32 {
    let word = (first as u32) << 8 | second as u32;
    twist(twist(before ^ at).wrapping_add(word)) ^ high
}

/// A permutation of all numbers.
#[inline(always)]
const fn twist(x: u32) -> u32 {
    x.wrapping_mul(x << 1 | 1).rotate_left(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two headers that differ, and two behind them, of the same lengths: the second ones make up for what
    /// the first ones differ by for hardly any secret, whatever they are.
    #[test]
    fn no_headers_make_up_for_others() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let at = rng.u32(..);
            let words = [(); 4].map(|()| (rng.u8(..), rng.u8(..)));
            let (a, b) = ((words[0], words[1]), (words[2], words[3]));
            let mut same = 0;
            for _ in 0..20_000 {
                let secret = rng.u32(..);
                let after = |pair: ((u8, u8), (u8, u8))| {
                    let mark = mark_after(secret, at, pair.0.0, pair.0.1, 0);
                    mark_after(mark, at.wrapping_add(9), pair.1.0, pair.1.1, 0)
                };
                same += u32::from(a != b && after(a) == after(b));
            }
            assert!(same <= 2, "{a:?} and {b:?} are the same for {same} of 20,000 secrets");
        }
    }
}
