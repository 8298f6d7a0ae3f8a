//! Zstd streams of any number of frames, skippable ones included.
//!
//! `zstd`, `pzstd` and `cat` produce such streams.

use std::{
    error::Error,
    io::{self, BufReader, Cursor, Read},
};

use ruzstd::decoding::{BlockDecodingStrategy::UptoBytes, FrameDecoder};

use super::open::up_to;

const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Check for the magic number of a stream, or of another frame in it.
pub fn is_magic(bytes: &[u8]) -> bool {
    bytes == MAGIC || is_skippable(bytes)
}

/// Check for a skippable frame (RFC 8878, 3.1.2).
fn is_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x5F, 0x2A, 0x4D, 0x18])
}

/// Decompressed content of a stream.
pub struct Zstd<R> {
    source: BufReader<R>,
    frame: Option<FrameDecoder>,
}

impl<R: Read> Zstd<R> {
    pub fn new(source: R) -> Zstd<R> {
        Zstd { source: BufReader::with_capacity(1 << 16, source), frame: None }
    }

    /// Begin the next frame that has data; `None` at the end.
    fn begin(&mut self) -> io::Result<Option<FrameDecoder>> {
        loop {
            let magic = up_to(&mut self.source, MAGIC.len())?;
            if magic.is_empty() {
                return Ok(None);
            } else if is_skippable(&magic) {
                self.skip()?;
            } else if magic == MAGIC {
                let mut frame = FrameDecoder::new();
                let mut source = Cursor::new(magic).chain(&mut self.source);
                frame.reset(&mut source).map_err(damage)?;
                return Ok(Some(frame));
            } else {
                return Err(io::Error::other("something else behind the zstd data"));
            }
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.source.read_exact(&mut length).map_err(damage)?;
        let length = u64::from(u32::from_le_bytes(length));
        let skipped = io::copy(&mut self.source.by_ref().take(length), &mut io::sink())?;
        if skipped < length { Err(ends_early()) } else { Ok(()) }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        loop {
            let frame = match &mut self.frame {
                Some(frame) => frame,
                None => match self.begin()? {
                    Some(frame) => self.frame.insert(frame),
                    None => return Ok(0),
                },
            };
            if frame.can_collect() > 0 {
                return frame.read(space);
            }
            if frame.is_finished() {
                let stored = frame.get_checksum_from_data();
                let is_right = stored.is_none() || stored == frame.get_calculated_checksum();
                self.frame = None;
                if !is_right {
                    return Err(io::Error::other("the zstd data do not match their checksum"));
                }
                continue;
            }
            let wanted = UptoBytes(space.len().max(1));
            frame.decode_blocks(&mut self.source, wanted).map_err(damage)?;
        }
    }
}

fn ends_early() -> io::Error {
    io::Error::other("the zstd data end early")
}

/// Return the decoder's innermost error; errors of reading are unchanged.
fn damage(error: impl Error + 'static) -> io::Error {
    let mut cause: &(dyn Error + 'static) = &error;
    loop {
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::UnexpectedEof) => return ends_early(),
            Some(kind) => return kind.into(),
            None => {}
        }
        match cause.source() {
            Some(source) => cause = source,
            None => return io::Error::other(format!("broken zstd data: {cause}")),
        }
    }
}
