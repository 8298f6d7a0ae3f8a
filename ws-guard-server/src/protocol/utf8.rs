//! Incremental UTF-8 validation (RFC 6455, 8.1).
//! An invalid byte is found on arrival, not at the end of the message.

use super::ProtocolError;

/// Maximum length of a character in bytes.
const LONGEST: usize = 4;

/// State of the text so far: the bytes of an incomplete character.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incremental {
    tail: [u8; LONGEST],
    len: u8,
}

impl Incremental {
    /// Check the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let rest = self.finish_character(bytes)?;
        let Err(error) = simdutf8::compat::from_utf8(rest) else { return Ok(()) };
        match (error.error_len(), rest.get(error.valid_up_to()..)) {
            (None, Some(tail)) if tail.len() < LONGEST => self.keep(tail),
            _ => return Err(ProtocolError::Utf8),
        }
        Ok(())
    }

    /// Finish the text: no character may be incomplete.
    pub fn finish(&mut self) -> Result<(), ProtocolError> {
        let open = std::mem::take(self).len > 0;
        if open { Err(ProtocolError::Utf8) } else { Ok(()) }
    }

    fn keep(&mut self, tail: &[u8]) {
        for (slot, byte) in self.tail.iter_mut().zip(tail) {
            *slot = *byte;
        }
        self.len = tail.len() as u8;
    }

    /// Take the missing bytes of the incomplete character, and return those after it.
    fn finish_character<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        while self.len > 0 {
            let Some((byte, rest)) = bytes.split_first() else { break };
            bytes = rest;
            let Some(slot) = self.tail.get_mut(usize::from(self.len)) else {
                return Err(ProtocolError::Utf8);
            };
            *slot = *byte;
            self.len += 1;
            let open = self.tail.get(..usize::from(self.len)).unwrap_or_default();
            match std::str::from_utf8(open) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return Err(ProtocolError::Utf8),
                Err(_) => {}
            }
        }
        Ok(bytes)
    }
}

/// Check a whole text at once.
pub fn check(text: &[u8]) -> Result<(), ProtocolError> {
    simdutf8::basic::from_utf8(text).map(drop).map_err(|_| ProtocolError::Utf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Return the position of the byte at which pushing single bytes fails.
    /// It is the length if that never fails and the end is clean.
    fn fails_at(bytes: &[u8]) -> Option<usize> {
        let mut text = Incremental::default();
        let at = bytes.iter().position(|byte| text.push(&[*byte]).is_err());
        at.or_else(|| text.finish().is_err().then_some(bytes.len()))
    }

    #[test]
    fn an_invalid_byte_is_found_at_once() {
        for (bytes, at) in [
            (&b"ok"[..], None),
            ("κόσμε\u{10FFFF}".as_bytes(), None),
            (b"a\xC0\x80", Some(1)),
            (b"\xED\xA0\x80", Some(1)),
            (b"\xF4\x90\x80\x80", Some(1)),
            (b"\xF0\x9F\x92", Some(3)),
            (b"\xE2\x28\xA1", Some(1)),
            (b"\xF8", Some(0)),
            (b"\x80", Some(0)),
        ] {
            assert_eq!(fails_at(bytes), at, "{bytes:02x?}");
        }
    }

    fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            1 => prop::collection::vec(any::<u8>(), 0..3),
        ];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn in_any_pieces_as_the_standard_library_says(
            bytes in nearly_text(),
            cuts in prop::collection::vec(1usize..9, 1..20),
        ) {
            let mut text = Incremental::default();
            let mut rest = bytes.as_slice();
            let mut verdict = Ok(());
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                rest = behind;
                verdict = verdict.and_then(|()| text.push(piece));
                if rest.is_empty() {
                    break;
                }
            }
            let verdict = verdict.and_then(|()| text.finish());
            prop_assert_eq!(verdict.is_ok(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
