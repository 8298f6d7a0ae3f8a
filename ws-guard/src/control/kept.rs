//! What operators decided, kept in a file: it outlives the daemon, the pins and a reboot.
//!
//! The maps are the truth while they live; the file is written anew, whole, after each decision, and
//! read when a daemon starts without pins.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use ws_guard_common::{
    maps::Rule,
    source::{BANNED, MANUAL, UNTIL_RELEASED},
};

use super::{
    networks::{ALLOWED_BY_OPERATOR, SET_BY_OPERATOR},
    operator::Operator,
    throttling::Named,
};
use crate::{
    domain::{
        address::{network_text, prefixes_of},
        clock::{Clock, Timestamp},
        overrides::NetworkPolicy,
    },
    guard::GuardError,
};

/// Version of the file.
const VERSION: u32 = 1;
/// A file larger than this is none of ours.
const LARGEST: u64 = 16 << 20;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// Networks on the allowlist.
    allow: Vec<IpNet>,
    /// Networks with settings of their own.
    cidrs: Vec<NetworkPolicy>,
    throttles: Vec<KeptThrottle>,
}

/// A source that an operator throttled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptThrottle {
    source: IpNet,
    /// By the wall clock; null until it is released.
    until: Option<Timestamp>,
    /// Everything of it is dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ban: bool,
}

/// The file.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file at `path`, if its directory can be written and nothing else than a file would be
    /// replaced there; else none, with a warning.
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

    /// What was kept. A file that cannot be read as such is moved aside, and named in the log.
    fn read(&self) -> Option<Kept> {
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

    /// Replace the file: whole, or not at all, whatever happens meanwhile.
    fn write(&self, kept: &Kept) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.dir())?;
        file.write_all(&serde_json::to_vec_pretty(kept)?)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        // The name has to reach the disk as well.
        File::open(self.dir())?.sync_all()
    }
}

/// Whether a file may take the place of what is at `path`: `/dev/null` is one for all programs.
fn replaceable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(io::Error::other("it is a pipe, a device or a directory"))
        }
        _ => Ok(()),
    }
}

impl Operator {
    /// Write down what operators decided. The change is in force in any case; a file that cannot be
    /// written is told in the log.
    pub(super) fn keep(&self) {
        let Some(file) = &self.file else { return };
        let _keeping = self.keeping.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = self.decided().map_err(io::Error::other).and_then(|kept| file.write(&kept));
        if let Err(error) = written {
            tracing::error!(
                "{} cannot be written ({error}): the latest decision is in force, and lost at a \
                 reboot",
                file.path.display()
            );
        }
    }

    /// What operators decided, read from the maps.
    fn decided(&self) -> Result<Kept, GuardError> {
        let rules = self.maps.rules()?;
        let network = |flag: u32| {
            let of_theirs = rules.iter().filter(move |(_, _, rule)| rule.flags & flag != 0);
            of_theirs.filter_map(|(address, length, _): &(_, _, Rule)| {
                IpNet::new(*address, *length).ok()
            })
        };
        let set: Vec<IpNet> = network(SET_BY_OPERATOR).collect();
        let mut cidrs = self.read_policy()?.cidrs;
        cidrs.retain(|policy| set.contains(&policy.cidr));
        let allow = network(ALLOWED_BY_OPERATOR).collect();
        Ok(Kept { version: VERSION, allow, cidrs, throttles: self.throttled_by_hand()? })
    }

    fn throttled_by_hand(&self) -> Result<Vec<KeptThrottle>, GuardError> {
        let prefixes = prefixes_of(&self.maps.policy()?);
        let clock = Clock::now();
        let mut ends: BTreeMap<IpNet, (u64, bool)> = BTreeMap::new();
        for (key, source) in self.maps.sources()? {
            // A connection does not outlive what the file is for.
            let whole = key.level() == 0 && key.port() == 0;
            if whole && source.flags & MANUAL != 0 && source.throttled_until > clock.now_ns {
                let (end, ban) = ends.entry(prefixes.source_of(key.address.into())).or_default();
                *end = source.throttled_until.max(*end);
                *ban |= source.flags & BANNED != 0;
            }
        }
        let throttle = |(source, (end, ban)): (IpNet, (u64, bool))| {
            let until = clock.at(end).filter(|_| end != UNTIL_RELEASED);
            KeptThrottle { source, until, ban }
        };
        Ok(ends.into_iter().map(throttle).collect())
    }

    /// At the start: take up what was kept. With `maps_lived` the maps know it already, and better.
    pub fn restore(&self, maps_lived: bool) {
        let Some(file) = &self.file else { return };
        let kept = file.read();
        match kept {
            Some(kept) if !maps_lived => self.take_up(&kept),
            Some(_) => self.keep(),
            None if maps_lived => {
                let nothing = |kept: &Kept| {
                    kept.allow.is_empty() && kept.cidrs.is_empty() && kept.throttles.is_empty()
                };
                // A file only where there is something to keep.
                if self.decided().is_ok_and(|kept| !nothing(&kept)) {
                    self.keep();
                }
            }
            None => {}
        }
    }

    fn take_up(&self, kept: &Kept) {
        for network in &kept.allow {
            self.told(network, self.allow_now(&network_text(network)).map(drop));
        }
        for policy in &kept.cidrs {
            let set = self.set_cidr_now(&network_text(&policy.cidr), &policy.own);
            self.told(&policy.cidr, set.map(drop));
        }
        let clock = Clock::now();
        for KeptThrottle { source, until, ban } in &kept.throttles {
            let left = |until: &Timestamp| until.0.duration_since(clock.wall).unwrap_or_default();
            let end = match until.as_ref().map(left) {
                None => UNTIL_RELEASED,
                Some(Duration::ZERO) => continue,
                Some(left) => clock.now_ns.saturating_add(left.as_nanos() as u64),
            };
            let throttled = self
                .source(&network_text(source))
                .and_then(|source| self.throttle_until(&Named::Prefix(source), end, *ban));
            self.told(source, throttled);
        }
        tracing::info!(
            allowed = kept.allow.len(),
            networks = kept.cidrs.len(),
            throttled = kept.throttles.len(),
            "restored from the state file"
        );
        self.keep();
    }

    /// What cannot be taken up is named, and dropped.
    fn told(&self, network: &IpNet, result: Result<(), super::error::ApiError>) {
        if let Err(error) = result {
            tracing::warn!("cannot restore the settings of {network}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::overrides::parse_network;

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
