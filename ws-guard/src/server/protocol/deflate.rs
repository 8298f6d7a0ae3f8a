//! permessage-deflate, RFC 7692: each message a DEFLATE stream of its own, without its last four
//! bytes.
//!
//! Without context takeover, which is the default, a connection owns no compressor: all connections
//! of a thread share one, so that an agreed extension costs an idle connection nothing.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{ProtocolError, extension::Agreed};

/// What a sync flush ends with, and the message on the wire goes without (7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
/// Output is grown from at least so many bytes.
const FIRST_OUTPUT: usize = 512;
/// Smallest and largest exponent of the window that zlib offers; RFC 7692 also knows 8.
pub const MIN_WINDOW_BITS: u8 = 9;
pub const MAX_WINDOW_BITS: u8 = 15;

thread_local! {
    /// Of the largest window, which reads streams of all smaller ones.
    static INFLATE: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    /// By the exponent of the window.
    static DEFLATE: RefCell<[Option<Compress>; 7]> = const { RefCell::new([const { None }; 7]) };
}

fn compressor(window_bits: u8) -> Compress {
    Compress::new_with_window_bits(Compression::fast(), false, window_bits)
}

fn decompressor() -> Decompress {
    Decompress::new_with_window_bits(false, MAX_WINDOW_BITS)
}

/// One direction's compressor.
#[derive(Debug)]
pub struct Deflater {
    window_bits: u8,
    /// With context takeover.
    own: Option<Box<Compress>>,
}

impl Deflater {
    /// For what this server sends under `agreed`.
    pub fn new(agreed: &Agreed) -> Deflater {
        let window_bits = agreed.server_max_window_bits.clamp(MIN_WINDOW_BITS, MAX_WINDOW_BITS);
        let takeover = !agreed.server_no_context_takeover;
        Deflater { window_bits, own: takeover.then(|| Box::new(compressor(window_bits))) }
    }

    /// Compress a message into `out`, which is emptied first.
    ///
    /// Returns whether it worked; if not, the message goes uncompressed. (With context takeover
    /// nothing is lost by that: what an uncompressed message says is in no window.)
    pub fn deflate(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        if let Some(own) = &mut self.own {
            return deflate(own, message, out);
        }
        DEFLATE.with_borrow_mut(|shared| {
            let slot = usize::from(self.window_bits - MIN_WINDOW_BITS);
            let Some(slot) = shared.get_mut(slot) else { return false };
            let compress = slot.get_or_insert_with(|| compressor(self.window_bits));
            compress.reset();
            deflate(compress, message, out)
        })
    }
}

fn deflate(compress: &mut Compress, mut message: &[u8], out: &mut Vec<u8>) -> bool {
    loop {
        out.reserve(FIRST_OUTPUT.max(message.len() / 2));
        let before = compress.total_in();
        if compress.compress_vec(message, out, FlushCompress::Sync).is_err() {
            return false;
        }
        let taken = (compress.total_in() - before) as usize;
        message = message.get(taken..).unwrap_or_default();
        // A flush is complete when it leaves room in the output.
        if message.is_empty() && out.len() < out.capacity() {
            break;
        }
    }
    let whole = out.ends_with(&TAIL);
    out.truncate(out.len().saturating_sub(TAIL.len()));
    whole
}

/// The other direction's decompressor.
#[derive(Debug, Default)]
pub struct Inflater {
    /// With context takeover.
    own: Option<Box<Decompress>>,
}

impl Inflater {
    /// For what the client sends under `agreed`.
    pub fn new(agreed: &Agreed) -> Inflater {
        let takeover = !agreed.client_no_context_takeover;
        Inflater { own: takeover.then(|| Box::new(decompressor())) }
    }

    /// Decompress a whole message of at most `max` bytes.
    pub fn inflate(&mut self, message: &[u8], max: usize) -> Result<Bytes, ProtocolError> {
        let mut out = Vec::new();
        if let Some(own) = &mut self.own {
            inflate(own, message, max, &mut out)?;
        } else {
            INFLATE.with_borrow_mut(|shared| {
                let decompress = shared.get_or_insert_with(decompressor);
                decompress.reset(false);
                inflate(decompress, message, max, &mut out)
            })?;
        }
        Ok(Bytes::from(out))
    }
}

fn inflate(
    decompress: &mut Decompress,
    message: &[u8],
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(), ProtocolError> {
    for mut part in [message, &TAIL] {
        loop {
            if out.len() > max {
                return Err(ProtocolError::TooBig);
            }
            if out.len() == out.capacity() {
                // One byte more than may be, so that too much is seen.
                let more = out.len().max(part.len().saturating_mul(2)).max(FIRST_OUTPUT);
                out.reserve_exact(more.min(max + 1 - out.len()));
            }
            let (before_in, before_out) = (decompress.total_in(), out.len());
            let status = decompress.decompress_vec(part, out, FlushDecompress::Sync);
            let taken = (decompress.total_in() - before_in) as usize;
            part = part.get(taken..).unwrap_or_default();
            match status {
                // A block with BFINAL set ends a stream, not the message (RFC 7692, 7.2.3.4).
                Ok(Status::StreamEnd) => decompress.reset(false),
                Ok(_) if taken == 0 && out.len() == before_out && !part.is_empty() => {
                    return Err(ProtocolError::Deflate);
                }
                Ok(_) => {}
                Err(_) => return Err(ProtocolError::Deflate),
            }
            // Output may be waiting inside as long as it fills what it is given.
            if part.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(takeover: bool, window_bits: u8) -> Agreed {
        Agreed {
            server_no_context_takeover: !takeover,
            client_no_context_takeover: !takeover,
            server_max_window_bits: window_bits,
            client_max_window_bits: MAX_WINDOW_BITS,
        }
    }

    #[test]
    fn messages_of_the_rfc() {
        let mut inflater = Inflater::default();
        // 7.2.3.1, 7.2.3.3 (no compression), 7.2.3.4 (BFINAL), 7.2.3.5 (two blocks).
        for wire in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflater.inflate(wire, 5).unwrap(), "Hello", "{wire:02x?}");
        }
    }

    #[test]
    fn context_taken_over_as_in_the_rfc() {
        let mut inflater = Inflater::new(&agreed(true, 15));
        let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        // 7.2.3.2: the second message refers to the first.
        let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
        assert_eq!(inflater.inflate(&first, 5).unwrap(), "Hello");
        assert_eq!(inflater.inflate(&second, 5).unwrap(), "Hello");
        assert!(Inflater::default().inflate(&second, 5).is_err());
    }

    #[test]
    fn there_and_back_in_every_window() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 7 * 31).to_le_bytes()).collect();
        for window_bits in MIN_WINDOW_BITS..=MAX_WINDOW_BITS {
            for takeover in [false, true] {
                let agreed = agreed(takeover, window_bits);
                let (mut deflater, mut inflater) = (Deflater::new(&agreed), Inflater::new(&agreed));
                let mut small = Decompress::new_with_window_bits(false, window_bits);
                for size in [0, 1, 100, 511, 512, 65_536, text.len()] {
                    let mut wire = Vec::new();
                    assert!(deflater.deflate(&text[..size], &mut wire));
                    let back = inflater.inflate(&wire, size).unwrap();
                    assert!(back == text[..size], "{window_bits} bits, {size} bytes");
                    // The peer may have no more memory than the window that was agreed.
                    let mut out = Vec::new();
                    if !takeover {
                        small.reset(false);
                    }
                    assert!(inflate(&mut small, &wire, size, &mut out).is_ok());
                    assert!(out == text[..size]);
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let agreed = agreed(false, 15);
        let mut wire = Vec::new();
        assert!(Deflater::new(&agreed).deflate(&vec![0; 10 << 20], &mut wire));
        assert!(wire.len() < (10 << 20) / 50, "{}", wire.len());
        let mut inflater = Inflater::new(&agreed);
        assert_eq!(inflater.inflate(&wire, (10 << 20) - 1), Err(ProtocolError::TooBig));
        assert_eq!(inflater.inflate(&wire, 10 << 20).unwrap().len(), 10 << 20);
    }

    #[test]
    fn rubbish_is_refused_and_harms_nobody_else() {
        let mut inflater = Inflater::default();
        assert_eq!(inflater.inflate(&[0xFF; 9], 100), Err(ProtocolError::Deflate));
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflater.inflate(&hello, 5).unwrap(), "Hello");
    }
}
