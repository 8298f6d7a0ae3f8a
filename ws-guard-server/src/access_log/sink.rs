//! Destination of access log lines: a file that may be replaced, and may be full.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// File name and write status of a destination.
#[derive(Debug)]
pub struct Target {
    /// Path; none for standard output.
    path: Option<PathBuf>,
    /// Replacement of the current file, used from the next line on.
    next: Mutex<Option<File>>,
    lost: AtomicU64,
}

impl Target {
    /// Open a file to append to, or standard output where `path` is `-`.
    pub fn open(path: &Path) -> io::Result<(Arc<Target>, Sink)> {
        Ok(Target::on(open(path)?, path))
    }

    /// Write to a file that [`open`] has opened by this name.
    pub fn on(out: File, path: &Path) -> (Arc<Target>, Sink) {
        let path = (path != Path::new("-")).then(|| path.to_owned());
        let target = Target { path, next: Mutex::new(None), lost: AtomicU64::new(0) };
        let target = Arc::new(target);
        let sink = Sink { out, target: target.clone(), failing: false, torn: false };
        (target, sink)
    }

    /// Reopen the file, as the old one is renamed or removed by now.
    /// If that fails, lines still go to the old one.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.replace(append(path)?);
        }
        Ok(())
    }

    /// Write to another file from the next line on.
    pub fn replace(&self, file: File) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    /// Return the number of lines that were not written, or not in full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub fn name(&self) -> String {
        self.path.as_ref().map_or("standard output".into(), |path| path.display().to_string())
    }
}

/// Open a file to append to, or standard output where `path` is `-`.
pub fn open(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        // The library's buffer would hide lost lines.
        return Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?));
    }
    append(path)
}

/// Open a file to append to. A pipe without a reader is an error at once.
/// Waiting for a reader may take for ever, and would block shutdown.
fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // Lines are written by a thread that may wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// Writer of lines, which counts those that cannot be written.
pub struct Sink {
    out: File,
    target: Arc<Target>,
    failing: bool,
    /// `true` if the last line was written in part.
    torn: bool,
}

impl Sink {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.out.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = rest.len() < line.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Log the beginning and the end of losing lines.
    fn note(&mut self, written: io::Result<()>) {
        let failed = written.is_err();
        if let Err(error) = written {
            self.target.lost.fetch_add(1, Ordering::Relaxed);
            if !self.failing {
                let name = self.target.name();
                tracing::warn!("lines of the access log {name} are lost: {error}");
            }
        } else if self.failing {
            let (name, lost) = (self.target.name(), self.target.lost());
            tracing::info!("the access log {name} is written again, {lost} lines were lost");
        }
        self.failing = failed;
    }
}

impl Write for Sink {
    /// Accept a line even if it fails: the caller would retry the rest of a failed one.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let next = self.target.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            (self.out, self.torn) = (next, false);
        }
        let written = self.line(line);
        self.note(written);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_pipe_without_a_reader_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (target, mut sink) = Target::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(target.reopen().is_err() && Target::open(&path).is_err());
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        target.reopen().unwrap();
        sink.write_all(b"1\n").unwrap();
        let mut line = [0; 2];
        io::Read::read_exact(&mut reader.unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"1\n");
    }

    #[test]
    fn a_renamed_file_is_left_and_a_new_one_begun() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("a.jsonl"), folder.path().join("a.jsonl.1"));
        let (target, mut sink) = Target::open(&path).unwrap();
        sink.write_all(b"1\n").unwrap();
        fs::rename(&path, &old).unwrap();
        sink.write_all(b"2\n").unwrap();
        target.reopen().unwrap();
        assert!(path.exists(), "at once, also where nothing is written");
        sink.write_all(b"3\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "1\n2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n");
        // Without a new file, the old one is still used.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(target.reopen().is_err());
        sink.write_all(b"4\n").unwrap();
        assert_eq!(target.lost(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (target, mut sink) = Target::open(Path::new("/dev/full")).unwrap();
        for lost in 1..=3 {
            sink.write_all(b"{}\n").unwrap();
            assert_eq!(target.lost(), lost);
        }
    }
}
