//! State file: operators' decisions outlive the daemon, the pins and a reboot.
//!
//! The maps are authoritative while they exist; the file is rewritten as a whole after each
//! decision, and read when a daemon starts without pins.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::{clock::Timestamp, overrides::NetworkPolicy};

/// Version of the file's format.
pub(super) const VERSION: u32 = 1;
/// Size limit; a larger file is not ours.
const LARGEST: u64 = 16 << 20;

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) version: u32,
    /// Networks on the allowlist.
    pub(super) allow: Vec<IpNet>,
    /// Networks with their own settings.
    pub(super) cidrs: Vec<NetworkPolicy>,
    pub(super) throttles: Vec<KeptThrottle>,
}

/// Source throttled by an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptThrottle {
    pub(super) source: IpNet,
    /// End by the wall clock; null for a throttle until it is released.
    pub(super) until: Option<Timestamp>,
    /// Drop everything from the source.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) ban: bool,
}

/// The state file.
#[derive(Clone, Debug)]
pub struct StateFile {
    pub(super) path: PathBuf,
}

impl StateFile {
    /// Return the state file at `path`, or none, with a warning.
    /// Its directory has to be writable, and `path` free or a regular file.
    pub fn new(path: &Path) -> Option<StateFile> {
        let file = StateFile { path: path.to_owned() };
        let writable = fs::create_dir_all(file.dir())
            .and_then(|()| tempfile::NamedTempFile::new_in(file.dir()).map(drop))
            .and_then(|()| replaceable(path));
        match writable {
            Ok(()) => Some(file),
            Err(error) => {
                tracing::warn!(
                    "{} cannot be written ({error}): decisions of `allow`, `throttle` and `policy set \
                     --cidr` are lost at a reboot; name another --state-file, or none",
                    path.display()
                );
                None
            }
        }
    }

    fn dir(&self) -> &Path {
        self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Read the saved decisions. An invalid file is moved aside, and named in the log.
    pub(super) fn read(&self) -> Option<Kept> {
        let text = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Ok(metadata) if metadata.len() > LARGEST => Err("it is larger than 16 MiB".into()),
            _ => fs::read_to_string(&self.path).map_err(|error| error.to_string()),
        };
        let kept = text.and_then(|text| {
            serde_json::from_str::<Kept>(&text).map_err(|error| error.to_string())
        });
        match kept {
            Ok(kept) if kept.version == VERSION => Some(kept),
            Ok(kept) => self.put_aside(&format!("it is of version {}", kept.version)),
            Err(error) => self.put_aside(&error),
        }
    }

    fn put_aside(&self, why: &str) -> Option<Kept> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".corrupt-{seconds}"));
        let kept = match fs::rename(&self.path, &aside) {
            Ok(()) => format!("kept as {}", Path::new(&aside).display()),
            Err(error) => format!("it cannot be moved aside: {error}"),
        };
        tracing::error!(
            "{} cannot be read ({why}), {kept}: what operators allowed, throttled and set before is \
             not in force",
            self.path.display()
        );
        None
    }

    /// Replace the file atomically, whatever happens meanwhile.
    pub(super) fn write(&self, kept: &Kept) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir())?;
        file.write_all(&serde_json::to_vec_pretty(kept)?)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        // The name has to reach the disk as well.
        File::open(self.dir())?.sync_all()
    }
}

/// Check whether a file may replace `path`: `/dev/null` is shared by all programs.
fn replaceable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(io::Error::other("it is a pipe, a device or a directory"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::policy::parse_network;

    fn kept() -> Kept {
        Kept {
            version: VERSION,
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            cidrs: vec![parse_network("fd77::/64 max-ping-rate=100").unwrap()],
            throttles: vec![KeptThrottle {
                source: "192.0.2.1/32".parse().unwrap(),
                until: Some(Timestamp(UNIX_EPOCH + Duration::from_secs(1_700_000_000))),
                ban: true,
            }],
        }
    }

    #[test]
    fn only_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink("/dev/null", path("device")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for name in ["directory", "device", "socket"] {
            assert!(StateFile::new(&path(name)).is_none(), "{name}");
        }
        fs::write(path("file"), "").unwrap();
        for name in ["file", "none yet"] {
            assert!(StateFile::new(&path(name)).is_some(), "{name}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("sub/state.json")).unwrap();
        assert_eq!(file.read(), None);
        file.write(&kept()).unwrap();
        file.write(&kept()).unwrap();
        assert_eq!(file.read(), Some(kept()));
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn a_throttling_of_a_daemon_that_knew_no_bans_is_read() {
        let text = r#"{"source": "192.0.2.1/32", "until": null}"#;
        assert!(!serde_json::from_str::<KeptThrottle>(text).unwrap().ban);
    }

    #[test]
    fn a_corrupt_file_is_kept_aside() {
        for text in ["{", "", "{\"version\": 1}", "\u{0}\u{0}"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state.json");
            fs::write(&path, text).unwrap();
            assert_eq!(StateFile::new(&path).unwrap().read(), None);
            assert!(!path.exists());
            let aside = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
            assert!(aside.file_name().to_string_lossy().starts_with("state.json.corrupt-"));
            assert_eq!(fs::read_to_string(aside.path()).unwrap(), text);
        }
        let later = Kept { version: 2, ..kept() };
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("state.json")).unwrap();
        file.write(&later).unwrap();
        assert_eq!(file.read(), None);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_done_without() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(StateFile::new(&file.path().join("state.json")).is_none());
    }
}
