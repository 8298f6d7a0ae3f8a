//! Regular files of bounded size, read whole: settings, keys and certificates.
//!
//! They are read again whenever they change. A pipe yields its bytes once and may block a reader
//! for ever, and a device may be endless.
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Maximum size of a file in bytes.
const LARGEST: u64 = 1 << 20;

/// Read a file's bytes.
///
/// # Errors
/// If it is not regular, is larger than 1 MiB, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_open(&open(path)?)
}

/// Open a file for reading, perhaps by another process.
///
/// # Errors
/// If it is not regular, or cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(
            "it is a pipe, a device or a directory: a regular file is required",
        ));
    }
    Ok(file)
}

/// Read the bytes of an open file.
///
/// # Errors
/// If it is larger than 1 MiB, or cannot be read.
pub fn read_open(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.take(LARGEST + 1).read_to_end(&mut bytes)? as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| dir.path().join(name);
        assert!(Command::new("mkfifo").arg(file("pipe")).status().unwrap().success());
        for path in [&file("pipe"), dir.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("a regular file is required"), "{error}");
        }
        fs::write(file("large"), vec![b'#'; 1 + (1 << 20)]).unwrap();
        assert!(read(&file("large")).unwrap_err().to_string().contains("1 MiB"));
        fs::write(file("bytes"), b"\xff\0").unwrap();
        assert_eq!(read(&file("bytes")).unwrap(), b"\xff\0");
    }
}
