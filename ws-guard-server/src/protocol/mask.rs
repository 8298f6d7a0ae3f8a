//! Masking (RFC 6455, 5.3).

/// Number of bytes masked at a time: the compiler vectorises this.
const BLOCK: usize = 32;

/// Mask or unmask `bytes` in place, and return the key as it continues after them.
#[must_use]
pub fn apply(key: [u8; 4], bytes: &mut [u8]) -> [u8; 4] {
    let wide: [u8; BLOCK] = std::array::from_fn(|i| key[i % 4]);
    let turns = bytes.len() % 4;
    let mut blocks = bytes.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        block.iter_mut().zip(wide).for_each(|(byte, key)| *byte ^= key);
    }
    blocks.into_remainder().iter_mut().zip(wide).for_each(|(byte, key)| *byte ^= key);
    std::array::from_fn(|i| key[(i + turns) % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_bytes() {
        let key = [0x37, 0xFA, 0x21, 0x3D];
        let plain: Vec<u8> = (0..200u8).collect();
        let masked: Vec<u8> = plain.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k).collect();
        for cut in 0..=plain.len() {
            let mut bytes = masked.clone();
            let (left, right) = bytes.split_at_mut(cut);
            let next = apply(key, left);
            let last = apply(next, right);
            assert_eq!(bytes, plain, "cut at {cut}");
            assert_eq!(last, key, "200 is a whole number of turns");
        }
    }
}
