//! permessage-deflate (RFC 7692): a DEFLATE stream for each message.
//!
//! The last four bytes of each are omitted. Without context takeover, which is the default, a
//! connection has a compressor only while a message is being compressed, so that the extension
//! costs an idle connection nothing. Long messages take several turns, with those of other
//! connections in between.
//!
//! A message is decompressed once it is complete: one that never ends holds no more memory than
//! was sent of it.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{
    ProtocolError,
    extension::{Agreed, MAX_WINDOW_BITS, MIN_WINDOW_BITS},
};
use crate::turn::{SLICE, TURN, Turn};

/// End of a sync flush, which the message on the wire omits (7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
/// Initial size of output, from which it grows.
const FIRST_OUTPUT: usize = 512;
/// Cost of a stream's end in a turn: the next one has to be begun.
const STREAM: usize = 256;

/// Memory of a compressor and of a decompressor with the largest window, in bytes.
const COMPRESSOR: usize = 272 * 1024;
const DECOMPRESSOR: usize = 48 * 1024;

thread_local! {
    /// Last used decompressor, of the largest window, which reads all smaller ones.
    static INFLATE: RefCell<Option<Box<Decompress>>> = const { RefCell::new(None) };
    /// Last used compressors, by the exponent of the window.
    static DEFLATE: RefCell<[Option<Box<Compress>>; 7]> =
        const { RefCell::new([const { None }; 7]) };
}

fn compressor(window_bits: u8) -> Box<Compress> {
    Box::new(Compress::new_with_window_bits(Compression::fast(), false, window_bits))
}

fn decompressor() -> Box<Decompress> {
    Box::new(Decompress::new_with_window_bits(false, MAX_WINDOW_BITS))
}

/// Compressor of one direction.
#[derive(Debug)]
pub struct Deflater {
    window_bits: u8,
    takeover: bool,
    /// Compressor: with context takeover from the first message on, else during one.
    own: Option<Box<Compress>>,
}

/// Progress of compressing a message.
#[derive(Debug, Default)]
pub struct Deflating {
    taken: usize,
    out: Vec<u8>,
}

impl Deflating {
    /// Begin; the output goes into `out`, which is emptied.
    pub fn into(mut out: Vec<u8>) -> Deflating {
        out.clear();
        Deflating { taken: 0, out }
    }

    /// Return the output.
    pub fn out(self) -> Vec<u8> {
        self.out
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.out.capacity() + if self.taken > 0 { COMPRESSOR } else { 0 }
    }

    fn push(&mut self, compress: &mut Compress, message: &[u8], turn: &mut Turn) -> Option<bool> {
        while !turn.is_over() {
            let rest = message.get(self.taken..).unwrap_or_default();
            let part = rest.get(..SLICE).unwrap_or(rest);
            let last = part.len() == rest.len();
            let flush = if last { FlushCompress::Sync } else { FlushCompress::None };
            self.out.reserve(FIRST_OUTPUT.max(part.len() / 2));
            let before = compress.total_in();
            if compress.compress_vec(part, &mut self.out, flush).is_err() {
                return Some(false);
            }
            let taken = (compress.total_in() - before) as usize;
            self.taken += taken;
            turn.spend(taken);
            if self.out.len() >= message.len() + TAIL.len() {
                return Some(false);
            }
            // A flush is complete when it leaves room in the output.
            if last && taken == part.len() && self.out.len() < self.out.capacity() {
                let whole = self.out.ends_with(&TAIL);
                self.out.truncate(self.out.len().saturating_sub(TAIL.len()));
                return Some(whole && self.out.len() < message.len());
            }
        }
        None
    }
}

impl Deflater {
    /// Create the compressor for what this server sends under `agreed`.
    pub fn new(agreed: &Agreed) -> Deflater {
        let window_bits = agreed.server_max_window_bits.clamp(MIN_WINDOW_BITS, MAX_WINDOW_BITS);
        Deflater { window_bits, takeover: !agreed.server_no_context_takeover, own: None }
    }

    /// Continue with a message, the same until done; return whether it got shorter.
    /// `None` when the turn is over. One that did not shrink is sent uncompressed, and is not in
    /// the window then.
    pub fn go_on(
        &mut self,
        message: &[u8],
        progress: &mut Deflating,
        turn: &mut Turn,
    ) -> Option<bool> {
        let mut compress = self.own.take().unwrap_or_else(|| self.borrow());
        let done = progress.push(&mut compress, message, turn);
        if done.is_none() || self.takeover {
            if done == Some(false) {
                compress.reset();
            }
            self.own = Some(compress);
        } else {
            self.give_back(compress);
        }
        done
    }

    fn borrow(&self) -> Box<Compress> {
        let kept = DEFLATE.with_borrow_mut(|kept| kept.get_mut(self.slot()).and_then(Option::take));
        kept.unwrap_or_else(|| compressor(self.window_bits))
    }

    fn give_back(&self, mut compress: Box<Compress>) {
        compress.reset();
        DEFLATE.with_borrow_mut(|kept| {
            if let Some(slot) = kept.get_mut(self.slot()) {
                *slot = Some(compress);
            }
        });
    }

    fn slot(&self) -> usize {
        usize::from(self.window_bits - MIN_WINDOW_BITS)
    }
}

/// Decompressor of the other direction.
#[derive(Debug, Default)]
pub struct Inflater {
    takeover: bool,
    /// Decompressor: with context takeover from the first message on, else during one.
    own: Option<Box<Decompress>>,
}

/// Complete message in decompression.
#[derive(Debug)]
pub struct Inflating {
    wire: Bytes,
    /// Number of bytes taken, of the message and of the omitted end.
    taken: usize,
    out: Vec<u8>,
}

impl Inflating {
    /// Begin with a message as on the wire.
    pub fn new(wire: Bytes) -> Inflating {
        Inflating { wire, taken: 0, out: Vec::new() }
    }

    /// Return the output so far.
    pub fn out(&self) -> &[u8] {
        &self.out
    }

    /// Return the output.
    pub fn into_out(self) -> Bytes {
        self.out.into()
    }

    /// Return the number of bytes held in memory.
    pub fn held(&self) -> usize {
        self.wire.len() + self.out.capacity() + DECOMPRESSOR
    }

    fn push(
        &mut self,
        decompress: &mut Decompress,
        max: usize,
        turn: &mut Turn,
    ) -> Result<bool, ProtocolError> {
        while !turn.is_over() {
            let made = self.out.len();
            if made > max {
                return Err(ProtocolError::TooBig);
            }
            let part = part(&self.wire, self.taken);
            // One byte more than allowed, to detect excess.
            let most = max + 1 - made;
            let room = (2 * part.len()).clamp(FIRST_OUTPUT, TURN).min(most);
            if self.out.capacity() - made < room {
                self.out.reserve_exact(room.max(made).min(most));
            }
            self.out.resize(made + room, 0);
            let (before_in, before_out) = (decompress.total_in(), decompress.total_out());
            let fresh = self.out.get_mut(made..).unwrap_or_default();
            let status = decompress.decompress(part, fresh, FlushDecompress::Sync);
            let took = (decompress.total_in() - before_in) as usize;
            let grown = (decompress.total_out() - before_out) as usize;
            self.out.truncate(made + grown);
            self.taken += took;
            turn.spend(took.max(grown));
            match status {
                // A block with BFINAL set ends a stream, not the message (RFC 7692, 7.2.3.4).
                Ok(Status::StreamEnd) => {
                    decompress.reset(false);
                    turn.spend(STREAM);
                }
                Ok(_) if took == 0 && grown == 0 && !part.is_empty() => {
                    return Err(ProtocolError::Deflate);
                }
                Ok(_) => {}
                Err(_) => return Err(ProtocolError::Deflate),
            }
            // Output may be pending inside as long as it fills the space given.
            if self.taken == self.wire.len() + TAIL.len() && grown < room {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Inflater {
    /// Create the decompressor for what the client sends under `agreed`.
    pub fn new(agreed: &Agreed) -> Inflater {
        Inflater { takeover: !agreed.client_no_context_takeover, own: None }
    }

    /// Continue with a message of at most `max` bytes, and return whether it is done.
    /// Otherwise the turn is over.
    pub fn go_on(
        &mut self,
        progress: &mut Inflating,
        max: usize,
        turn: &mut Turn,
    ) -> Result<bool, ProtocolError> {
        let mut decompress = self.own.take().unwrap_or_else(borrow_decompressor);
        let done = progress.push(&mut decompress, max, turn);
        if self.takeover || done == Ok(false) {
            self.own = Some(decompress);
        } else {
            give_back_decompressor(decompress);
        }
        done
    }

    /// Give up an unfinished message; none can be decompressed after it.
    pub fn abandon(&mut self) {
        self.own = None;
    }
}

/// Return a few bytes after those taken, and finally the omitted end.
fn part(wire: &[u8], taken: usize) -> &[u8] {
    match wire.get(taken..) {
        Some(rest) if !rest.is_empty() => rest.get(..SLICE).unwrap_or(rest),
        _ => TAIL.get(taken.saturating_sub(wire.len())..).unwrap_or_default(),
    }
}

fn borrow_decompressor() -> Box<Decompress> {
    INFLATE.with_borrow_mut(Option::take).unwrap_or_else(decompressor)
}

fn give_back_decompressor(mut decompress: Box<Decompress>) {
    decompress.reset(false);
    INFLATE.with_borrow_mut(|kept| *kept = Some(decompress));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn agreed(takeover: bool, window_bits: u8) -> Agreed {
        Agreed {
            server_no_context_takeover: !takeover,
            client_no_context_takeover: !takeover,
            server_max_window_bits: window_bits,
            client_max_window_bits: MAX_WINDOW_BITS,
        }
    }

    fn whole(inflater: &mut Inflater, wire: &[u8], max: usize) -> Result<Bytes, ProtocolError> {
        let mut progress = Inflating::new(Bytes::copy_from_slice(wire));
        let done = inflater.go_on(&mut progress, max, &mut Turn::endless())?;
        assert!(done);
        Ok(progress.into_out())
    }

    /// Compress as on the wire, if that gets shorter.
    fn wire(deflater: &mut Deflater, message: &[u8]) -> Option<Vec<u8>> {
        let mut progress = Deflating::default();
        let shorter = deflater.go_on(message, &mut progress, &mut Turn::endless()).unwrap();
        shorter.then(|| progress.out())
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes as u32 / 4 + 1).flat_map(|i| (i / 7 * 31).to_le_bytes()).take(bytes).collect()
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
            assert_eq!(whole(&mut inflater, wire, 5).unwrap(), "Hello", "{wire:02x?}");
        }
    }

    #[test]
    fn context_taken_over_as_in_the_rfc() {
        let mut inflater = Inflater::new(&agreed(true, 15));
        let first = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        // 7.2.3.2: the second message refers to the first.
        let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
        assert_eq!(whole(&mut inflater, &first, 5).unwrap(), "Hello");
        assert_eq!(whole(&mut inflater, &second, 5).unwrap(), "Hello");
        assert!(whole(&mut Inflater::default(), &second, 5).is_err());
    }

    #[test]
    fn there_and_back_in_every_window() {
        let text = text(800_000);
        for window_bits in MIN_WINDOW_BITS..=MAX_WINDOW_BITS {
            for takeover in [false, true] {
                let agreed = agreed(takeover, window_bits);
                let (mut deflater, mut inflater) = (Deflater::new(&agreed), Inflater::new(&agreed));
                // The peer may have no more memory than the agreed window.
                let small = Box::new(Decompress::new_with_window_bits(false, window_bits));
                let mut small = Inflater { takeover: true, own: Some(small) };
                for size in [100, 511, 512, 65_536, text.len()] {
                    let wire = wire(&mut deflater, &text[..size]).unwrap();
                    let back = whole(&mut inflater, &wire, size).unwrap();
                    assert!(back == text[..size], "{window_bits} bits, {size} bytes");
                    assert!(whole(&mut small, &wire, size).unwrap() == text[..size]);
                    if !takeover {
                        small.own.as_mut().unwrap().reset(false);
                    }
                }
            }
        }
    }

    /// Two connections with messages of many turns, alternating, and a short message.
    #[test]
    fn long_messages_take_turns_and_come_to_the_same() {
        let agreed = agreed(false, 15);
        let texts = [text(700_000), text(900_000)];
        let mut deflaters = [(); 2].map(|()| Deflater::new(&agreed));
        let mut inflaters = [(); 2].map(|()| Inflater::new(&agreed));
        let mut deflating = [(); 2].map(|()| Deflating::default());
        let mut wires: [Option<Vec<u8>>; 2] = [None, None];
        let (mut turns, hello) = (0, [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
        while wires.iter().any(Option::is_none) {
            turns += 1;
            for (n, text) in
                texts.iter().enumerate().filter(|(n, _)| wires[*n].is_none()).collect::<Vec<_>>()
            {
                let before = deflating[n].taken;
                let done =
                    deflaters[n].go_on(text, &mut deflating[n], &mut Turn::new(Instant::now()));
                assert!(deflating[n].taken - before <= TURN + SLICE);
                if done.is_some() {
                    wires[n] = Some(std::mem::take(&mut deflating[n]).out());
                }
            }
        }
        assert!(turns >= 900_000 / (TURN + SLICE), "{turns} turns");
        let mut inflating = wires.map(|wire| Inflating::new(wire.unwrap().into()));
        let mut done = [false; 2];
        while done != [true; 2] {
            for n in (0..2).filter(|n| !done[*n]).collect::<Vec<_>>() {
                let before = inflating[n].out.len();
                let turn = &mut Turn::new(Instant::now());
                done[n] = inflaters[n].go_on(&mut inflating[n], 1 << 20, turn).unwrap();
                assert!(inflating[n].out.len() - before <= 2 * TURN);
            }
            assert_eq!(whole(&mut Inflater::new(&agreed), &hello, 5).unwrap(), "Hello");
        }
        for (inflating, text) in inflating.into_iter().zip(texts) {
            assert!(inflating.into_out() == text);
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let agreed = agreed(false, 15);
        let wire = wire(&mut Deflater::new(&agreed), &vec![0; 10 << 20]).unwrap();
        assert!(wire.len() < (10 << 20) / 50, "{}", wire.len());
        let mut inflater = Inflater::new(&agreed);
        assert_eq!(whole(&mut inflater, &wire, (10 << 20) - 1), Err(ProtocolError::TooBig));
        assert_eq!(whole(&mut inflater, &wire, 10 << 20).unwrap().len(), 10 << 20);
        // A turn is a turn, however little was received.
        let mut progress = Inflating::new(wire.into());
        assert_eq!(
            inflater.go_on(&mut progress, 16 << 20, &mut Turn::new(Instant::now())),
            Ok(false)
        );
        assert!(progress.out().len() <= 2 * TURN && progress.held() <= 4 * TURN + (1 << 18));
    }

    #[test]
    fn rubbish_is_refused_and_harms_no_other_connection() {
        let mut inflater = Inflater::default();
        assert_eq!(whole(&mut inflater, &[0xFF; 9], 100), Err(ProtocolError::Deflate));
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(whole(&mut inflater, &hello, 5).unwrap(), "Hello");
    }

    /// The peer has not seen it, so nothing may refer to it.
    #[test]
    fn what_went_uncompressed_is_in_no_window() {
        let agreed = agreed(true, 15);
        let (mut deflater, mut inflater) = (Deflater::new(&agreed), Inflater::new(&agreed));
        let mut random = vec![0; 10_000];
        fastrand::Rng::with_seed(7).fill(&mut random);
        assert_eq!(wire(&mut deflater, &random), None);
        let twice = [&random[..5000], &random[..5000]].concat();
        let wire = wire(&mut deflater, &twice).unwrap();
        assert!(whole(&mut inflater, &wire, twice.len()).unwrap() == twice);
    }
}
