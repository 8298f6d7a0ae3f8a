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

/// Why a capture could not be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such file, or it may not be read.
    #[error("{name}: {error}")]
    Open { name: String, error: io::Error },
    /// The file is there and is no capture, or is damaged.
    #[error("{name}: {damage}")]
    Damaged { name: String, damage: Damage },
}

/// What is wrong with a capture, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset in the capture, after decompression, of the first byte that could not be used.
    pub offset: u64,
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.what, self.offset)
    }
}

/// How much of the files was read, for whoever shows progress.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    read: Arc<AtomicU64>,
    /// Bytes of all files together, as they are stored; `None` where standard input is among them.
    pub total: Option<u64>,
}

impl Progress {
    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The same bytes, counted as they are read.
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

/// Several captures, one after the other.
pub struct Captures {
    /// The latest first.
    left: Vec<PathBuf>,
    current: Option<Capture>,
    names: Vec<String>,
    progress: Progress,
}

impl Captures {
    /// Files in order of their first packets, so that a rotated set is read as it was written, in
    /// whatever order its names come. `-` is standard input.
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
            // One file needs no order, and what is no regular file can be read once only.
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

    /// Names of the files so far, in the order in which they were read.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Go on to the next file. `false` when there is none.
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

    /// The next packet of the file at hand; `None` at its end.
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

/// When the first packet of a file was captured; `None` where it has none, or is damaged before it:
/// that is said when its turn comes.
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
