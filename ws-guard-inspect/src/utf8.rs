//! Incremental UTF-8 validation.

/// State of the validation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8 {
    /// Character whose last bytes are missing so far.
    begun: [u8; 4],
    length: usize,
    is_broken: bool,
}

impl Utf8 {
    /// Process the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let (1.., Some((next, rest))) = (self.length, bytes.split_first()) {
            bytes = rest;
            self.begun[self.length] = *next;
            self.length += 1;
            match std::str::from_utf8(&self.begun[..self.length]) {
                Ok(_) => self.length = 0,
                // It is one of four bytes at most, so that there is room for them.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => (self.is_broken, self.length) = (true, 0),
            }
        }
        if let Err(error) = std::str::from_utf8(bytes) {
            let rest = &bytes[error.valid_up_to()..];
            match error.error_len() {
                None => {
                    self.begun[..rest.len()].copy_from_slice(rest);
                    self.length = rest.len();
                }
                Some(_) => self.is_broken = true,
            }
        }
    }

    /// Check whether all of it was UTF-8 that ends with a complete character.
    pub const fn is_whole(&self) -> bool {
        !self.is_broken && self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_are_judged_as_the_whole() {
        let mut rng = fastrand::Rng::with_seed(11);
        let texts = ["", "a", "grüße", "日本語", "🦀🦀", "\u{7ff}\u{800}\u{ffff}\u{10000}"];
        let mut broken = 0;
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> =
                (0..rng.usize(..5)).flat_map(|_| texts[rng.usize(..6)].bytes()).collect();
            if rng.bool() && !bytes.is_empty() {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(bytes.len() / 2..=bytes.len()));
            let mut utf8 = Utf8::default();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rng.usize(1..=rest.len().min(7)));
                utf8.push(piece);
                rest = behind;
            }
            assert_eq!(utf8.is_whole(), std::str::from_utf8(&bytes).is_ok(), "{bytes:x?}");
            broken += u32::from(!utf8.is_whole());
        }
        assert!((1000..19_000).contains(&broken), "{broken}");
    }
}
