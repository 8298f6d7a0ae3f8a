//! Notices that the configuration file has changed.

use std::{path::PathBuf, time::Duration};

use super::file;

/// How often the file is looked at. A file this small costs less to read than a watch on a
/// directory that a ConfigMap swaps by symbolic link is worth: what is compared is the text
/// itself, so that replacing, renaming, deleting and coming back need no cases of their own.
const INTERVAL: Duration = Duration::from_millis(500);

/// Wait until a file changes; for ever without one.
pub async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Watches one file by its content.
pub struct Watch {
    path: PathBuf,
    /// Its text, or why it cannot be read, when last looked at.
    last: Result<String, String>,
}

impl Watch {
    /// Start from the content of now.
    pub fn new(path: PathBuf) -> Watch {
        let last = Watch::look(&path);
        Watch { path, last }
    }

    /// Wait until the content differs from what it was at the last return.
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

    fn look(path: &std::path::Path) -> Result<String, String> {
        file::read(path).map_err(|problem| problem.to_string())
    }
}
