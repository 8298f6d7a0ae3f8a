//! Unix socket: claimed by one daemon at a time, open to its owner and group.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio::net::UnixListener;

/// Mode of the socket: only owner and group may talk to the daemon.
const MODE: u32 = 0o660;

/// Claimed socket; dropping it removes the file.
pub struct Socket {
    path: PathBuf,
    /// Inode of the file we made, so that another daemon's is never removed.
    inode: u64,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Claim `path`: create its directory, replace a dead socket, refuse a live one.
    pub fn claim(path: &Path) -> anyhow::Result<Socket> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the directory {}", parent.display()))?;
        }
        refuse_living(path)?;
        let listener = UnixListener::bind(path).with_context(|| {
            format!("cannot listen on {}: name another with --control-socket", path.display())
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
        let inode = inode(path).unwrap_or(0);
        Ok(Socket { path: path.to_owned(), inode, listener: Some(listener) })
    }

    /// Take the listener; possible only once.
    pub fn listener(&mut self) -> anyhow::Result<UnixListener> {
        self.listener.take().context("the control socket is being served already")
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if inode(&self.path) == Some(self.inode) {
            // A failure is harmless: a dead socket is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

fn refuse_living(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot inspect {}", path.display()));
        }
    };
    anyhow::ensure!(
        kind.is_socket(),
        "{} exists and is no socket: remove it, or name another path with --control-socket",
        path.display()
    );
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the dead {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot determine the owner of {}", path.display()))
        }
        Ok(_) => anyhow::bail!(
            "a daemon already listens on {}: stop it first, or name another path with --control-socket (and another --pin-dir)",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_living_socket_is_refused_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        let first = Socket::claim(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let refused = Socket::claim(&path).err().unwrap().to_string();
        assert!(refused.contains("already listens"), "{refused}");
        drop(first);
        assert!(!path.exists());

        // As a killed daemon leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Socket::claim(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "mine").unwrap();
        assert!(Socket::claim(&path).err().unwrap().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
