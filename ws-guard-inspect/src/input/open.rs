//! Decompression by magic number, and the errors that the parser would swallow.

use std::{
    cell::RefCell,
    io::{self, BufReader, Cursor, ErrorKind, Read},
    rc::Rc,
};

use flate2::read::MultiGzDecoder;

use super::zstd::{self, Zstd};

/// Maximum length of a pcapng section header in bytes.
const LONGEST_SECTION_HEADER: usize = 1 << 20;
const GZIP: [u8; 2] = [0x1F, 0x8B];
/// Block type of a pcapng section header, the same in either byte order.
const PCAPNG: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];

/// Store for a read error: the parser only reports that there was one.
pub type Trouble = Rc<RefCell<Option<io::Error>>>;

/// Decompressed bytes of a capture, and their format.
pub struct Opened {
    pub bytes: Source,
    pub is_pcapng: bool,
    pub trouble: Trouble,
}

/// Source of bytes: first `head` in one piece, for the parser's first header.
pub struct Source {
    head: Vec<u8>,
    rest: Box<dyn Read>,
    trouble: Trouble,
}

impl Read for Source {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            let count = self.head.len().min(space.len());
            space[..count].copy_from_slice(&self.head[..count]);
            self.head.drain(..count);
            return Ok(count);
        }
        loop {
            match self.rest.read(space) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    *self.trouble.borrow_mut() = Some(error);
                    return Err(kind.into());
                }
                read => return read,
            }
        }
    }
}

/// Decompress, and read the first header.
pub fn open(mut source: Box<dyn Read>) -> io::Result<Opened> {
    let magic = up_to(&mut source, 4)?;
    let source: Box<dyn Read> = Box::new(Cursor::new(magic.clone()).chain(source));
    let mut source: Box<dyn Read> = if magic.starts_with(&GZIP) {
        Box::new(Gzip(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, source))))
    } else if zstd::is_magic(&magic) {
        Box::new(Zstd::new(source))
    } else {
        source
    };
    let mut head = up_to(&mut source, 12)?;
    if head.is_empty() {
        return Err(io::Error::other("nothing in it"));
    }
    if head.starts_with(&GZIP) || zstd::is_magic(&head[..head.len().min(4)]) {
        return Err(io::Error::other("compressed twice: decompress it once before"));
    }
    let is_pcapng = head.starts_with(&PCAPNG);
    let length = if is_pcapng { section_header_len(&head) } else { 24 };
    let more = length.saturating_sub(head.len());
    head.extend(up_to(&mut source, more)?);
    let trouble = Trouble::default();
    let bytes = Source { head, rest: source, trouble: Rc::clone(&trouble) };
    Ok(Opened { bytes, is_pcapng, trouble })
}

/// Return the length of the section header block, from its first 12 bytes.
fn section_header_len(head: &[u8]) -> usize {
    let (Some(length), Some(order)) = (head.get(4..8), head.get(8..12)) else {
        return 0;
    };
    let length = <[u8; 4]>::try_from(length).unwrap_or_default();
    let big = order == [0x1A, 0x2B, 0x3C, 0x4D];
    let length = if big { u32::from_be_bytes(length) } else { u32::from_le_bytes(length) };
    (length as usize).min(LONGEST_SECTION_HEADER)
}

/// Read `count` bytes, or fewer where the source ends.
pub fn up_to(source: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.by_ref().take(count as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gzip stream that marks its errors as its own.
struct Gzip<R>(R);

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.0.read(space).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => io::Error::other("the gzip data end early"),
            ErrorKind::InvalidInput | ErrorKind::InvalidData => {
                io::Error::other(format!("broken gzip data: {error}"))
            }
            _ => error,
        })
    }
}
