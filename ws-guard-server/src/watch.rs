//! Change detection for files of settings, keys and certificates.

use std::{path::PathBuf, time::Duration};

use super::regular;

/// Interval of reading the file.
/// A file this small costs less to read than a watch on a directory that a ConfigMap swaps by
/// symbolic link is worth: the bytes themselves are compared, so that replacing, renaming, deleting
/// and coming back need no cases of their own.
const INTERVAL: Duration = Duration::from_millis(500);

/// Wait until a file changes; for ever without one.
pub async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Watch on one file, by its content.
pub struct Watch {
    path: PathBuf,
    /// Bytes, or the error of reading them, at the last check.
    last: Result<Vec<u8>, String>,
}

impl Watch {
    /// Start from the present content.
    pub fn new(path: PathBuf) -> Watch {
        let last = Watch::look(&path);
        Watch { path, last }
    }

    /// Wait until the content differs from that at the last return.
    pub async fn changed(&mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let seen = Watch::look(&self.path);
            if seen == self.last {
                continue;
            }
            // An editor truncates before it writes: take what stays the same for an interval.
            tokio::time::sleep(INTERVAL / 5).await;
            if Watch::look(&self.path) == seen {
                self.last = seen;
                return;
            }
        }
    }

    fn look(path: &std::path::Path) -> Result<Vec<u8>, String> {
        regular::read(path).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Text before a certificate may be in any encoding.
    #[tokio::test]
    async fn files_that_are_not_utf8_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificate.pem");
        fs::write(&path, b"subject=O = M\xfcller\n1").unwrap();
        let mut watch = Watch::new(path.clone());
        fs::write(&path, b"subject=O = M\xfcller\n2").unwrap();
        watch.changed().await;
        let changed = tokio::time::timeout(INTERVAL * 3, watch.changed()).await;
        assert!(changed.is_err(), "it did not change again");
    }
}
