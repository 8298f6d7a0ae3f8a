//! `ws-guard hand-over`.

use std::{
    fs, io,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::output::{plural, print};

/// Give directories, and all that is in them, to a user: the first step of a container whose image
/// has no shell, before a daemon runs in the second as that user. Needs CAP_CHOWN.
#[derive(Args)]
pub struct HandOver {
    /// Number of the user, and of the group
    #[arg(long, value_name = "ID")]
    user: u32,
    /// Directories; they have to be there
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
}

impl HandOver {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut count = 0;
        for directory in &self.directories {
            count += hand_over(directory, self.user).with_context(|| {
                format!(
                    "cannot give {} to user {}: it has to be a directory that is mounted and can be \
                     written, and CAP_CHOWN has to be there",
                    directory.display(),
                    self.user
                )
            })?;
        }
        print(&plural(
            count,
            "file or directory handed over\n",
            "files and directories handed over\n",
        ))
    }
}

/// Hand over a directory, then its content, through no symbolic link; count them.
fn hand_over(directory: &Path, user: u32) -> io::Result<usize> {
    let mut count = 0;
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(&directory)?;
        lchown(&directory, Some(user), Some(user))?;
        count += 1;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
                continue;
            }
            match lchown(entry.path(), Some(user), Some(user)) {
                Ok(()) => count += 1,
                // A running daemon may have removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn links_are_not_followed_and_everything_below_changes_hands() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root to change owners");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (given, kept) = (dir.path().join("given"), dir.path().join("kept"));
        fs::create_dir_all(given.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(given.join("a/b/c"), "").unwrap();
        fs::write(kept.join("d"), "").unwrap();
        symlink(&kept, given.join("link")).unwrap();
        assert_eq!(hand_over(&given, 65532).unwrap(), 5);
        let owner = |path: PathBuf| fs::symlink_metadata(path).unwrap().uid();
        for path in ["", "a", "a/b", "a/b/c", "link"] {
            assert_eq!(owner(given.join(path)), 65532, "{path}");
        }
        assert_eq!((owner(kept.clone()), owner(kept.join("d"))), (0, 0));
        assert!(hand_over(&dir.path().join("none"), 65532).is_err());
    }
}
