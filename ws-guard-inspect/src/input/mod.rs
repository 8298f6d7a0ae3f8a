//! Captures: files in order of their first packets, or standard input.

mod capture;
mod open;
mod zstd;

use std::{
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use capture::{Capture, Packet};

/// Failure to read a capture, or to read it to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Missing or unreadable file.
    #[error("{name}: {error}")]
    Open { name: String, error: io::Error },
    /// File that is not a capture, or a damaged one.
    #[error("{name}: {damage}")]
    Damaged { name: String, damage: Damage },
}

/// Damage to a capture, and its position.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset, after decompression, of the first byte that could not be used.
    pub offset: u64,
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.what, self.offset)
    }
}

/// Number of bytes read, for progress displays.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    read: Arc<AtomicU64>,
    /// Stored size of all files in bytes; `None` where standard input is among them.
    pub total: Option<u64>,
}

impl Progress {
    /// Return the number of bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Wrap a source to count its bytes as they are read.
    fn count(&self, source: impl Read + 'static) -> Box<dyn Read> {
        Box::new(Counted { source, read: Arc::clone(&self.read) })
    }
}

struct Counted<R> {
    source: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(space)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Sequence of captures.
pub struct Captures {
    /// Files left to read, the latest first.
    left: Vec<PathBuf>,
    current: Option<Capture>,
    names: Vec<String>,
    progress: Progress,
}

impl Captures {
    /// Open files in the order of their first packets; `-` is standard input.
    /// So a rotated set is read as it was written, whatever the order of its names.
    pub fn open(files: &[PathBuf]) -> Result<Captures, ReadError> {
        let mut total = Some(0);
        let mut timed = Vec::new();
        for path in files {
            let size = match is_stdin(path) {
                true => None,
                false => Some(std::fs::metadata(path).map_err(|error| unopened(path, error))?),
            };
            if size.as_ref().is_some_and(std::fs::Metadata::is_dir) {
                return Err(unopened(path, io::ErrorKind::IsADirectory.into()));
            }
            let size = size.filter(|size| size.is_file()).map(|size| size.len());
            total = total.zip(size).map(|(total, size)| total + size);
            // One file needs no order, and anything but a regular file can be read only once.
            let first = if files.len() > 1 && size.is_some() { first_time(path)? } else { None };
            timed.push((first.unwrap_or(u64::MAX), path.clone()));
        }
        timed.sort_by_key(|(first, _)| *first);
        let left = timed.into_iter().rev().map(|(_, path)| path).collect();
        let progress = Progress { total, ..Progress::default() };
        Ok(Captures { left, current: None, names: Vec::new(), progress })
    }

    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Return the names of the files so far, in reading order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Go on to the next file; `false` if there is none.
    pub fn next_file(&mut self) -> Result<bool, ReadError> {
        self.current = None;
        let Some(path) = self.left.pop() else {
            return Ok(false);
        };
        self.names.push(name(&path));
        let source = source(&path)?;
        let number = self.names.len() as u32;
        let capture = Capture::new(self.progress.count(source), number);
        self.current = Some(capture.map_err(|damage| damaged(&path, damage))?);
        Ok(true)
    }

    /// Return the next packet of the current file; `None` at its end.
    pub fn packet(&mut self) -> Result<Option<Packet<'_>>, ReadError> {
        let Some(capture) = &mut self.current else {
            return Ok(None);
        };
        let names = &self.names;
        capture.packet().map_err(|damage| ReadError::Damaged {
            name: names.last().cloned().unwrap_or_default(),
            damage,
        })
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".into() } else { path.display().to_string() }
}

fn source(path: &Path) -> Result<Box<dyn Read>, ReadError> {
    if is_stdin(path) {
        return Ok(Box::new(io::stdin()));
    }
    let file = std::fs::File::open(path).map_err(|error| unopened(path, error))?;
    Ok(Box::new(file))
}

/// Return the time of a file's first packet.
/// `None` where it has none, or is damaged before it: that is reported when its turn comes.
fn first_time(path: &Path) -> Result<Option<u64>, ReadError> {
    let source = source(path)?;
    let first = Capture::new(source, 0).and_then(|mut capture| {
        let packet = capture.packet()?;
        Ok(packet.map(|packet| packet.place.time_ns))
    });
    Ok(first.ok().flatten())
}

fn unopened(path: &Path, error: io::Error) -> ReadError {
    ReadError::Open { name: name(path), error }
}

fn damaged(path: &Path, damage: Damage) -> ReadError {
    ReadError::Damaged { name: name(path), damage }
}
