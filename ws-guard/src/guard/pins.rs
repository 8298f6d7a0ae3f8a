//! Pin directory.
//!
//! ```text
//! /sys/fs/bpf/ws-guard/
//!   schema-2/                     version of the layouts; bpffs takes no regular files
//!   FLOWS SOURCES POLICY …        the maps
//!   programs/ws_guard_control     so that requests work without the daemon
//!   links/eth0-in-xdp-native      a link each: interface, direction, mode
//!   links/pod:cali0-out-tcx       the same for a pod's interface; no name holds a colon
//!   filters/eth0-out-clsact       netlink filters cannot be pinned: the program in one
//!   filters/eth0-netns-4026531840/ the network namespace that the filters are in
//!   filters/eth0-qdisc-4/         the clsact qdisc of interface number 4 was made by us
//! /sys/fs/bpf/ws_throttle_map     SOURCES once more, with the default directory
//! ```
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use nix::fcntl::{Flock, FlockArg};
use ws_guard_common::maps::{SCHEMA_VERSION, name, program};

use super::{
    Mode, bpffs,
    error::GuardError,
    interfaces::Interface,
    layout::{Found, LAYOUTS, Layout},
    migration,
    namespaces::Namespace,
    role::{Direction, Role},
};

/// Default pin directory, without `--pin-dir`.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/ws-guard";
/// Throttled sources, under the map's name in the article's guard.
pub const THROTTLE_MAP: &str = "/sys/fs/bpf/ws_throttle_map";

/// Suffix of a pin that is about to replace another.
pub const NEXT: &str = "-next";

const SCHEMA: &str = "schema-";
/// Prefix of a pod's interface. No interface has a colon in its name.
const POD: &str = "pod:";
const NETNS: &str = "-netns-";

/// Pin directory, existing or not.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
}

/// Attached direction of an interface and its mode, as encoded in pins' names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pinned {
    pub interface: String,
    pub role: Role,
    pub direction: Direction,
    pub mode: Mode,
}

impl Pins {
    pub fn new(dir: &Path) -> Self {
        Pins { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn control(&self) -> PathBuf {
        self.dir.join("programs").join(program::CONTROL)
    }

    pub fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    pub fn filters(&self) -> PathBuf {
        self.dir.join("filters")
    }

    /// Return the pin of a link, or of a filter's program.
    pub fn attachment(&self, pinned: &Pinned) -> PathBuf {
        let dir = if pinned.mode == Mode::Clsact { self.filters() } else { self.links() };
        dir.join(pinned.file_name())
    }

    /// Return the note that an interface's clsact qdisc is ours.
    pub fn qdisc(&self, interface: &str, index: u32) -> PathBuf {
        self.filters().join(format!("{}-qdisc-{index}", escape(interface)))
    }

    /// Return the note that an interface's filters are in a network namespace.
    pub fn namespace(&self, interface: &str, namespace: Namespace) -> PathBuf {
        self.filters().join(format!("{}{NETNS}{}", escape(interface), namespace.0))
    }

    /// Return the noted network namespaces of an interface's filters.
    /// There is one, unless a daemon died between two notes; none if an old version attached.
    pub fn namespaces(&self, interface: &str) -> Result<Vec<Namespace>, GuardError> {
        let notes = names(&self.filters())?;
        let noted = notes.iter().filter_map(|note| {
            let (name, inode) = note.rsplit_once(NETNS)?;
            (unescape(name) == interface).then_some(Namespace(inode.parse().ok()?))
        });
        Ok(noted.collect())
    }

    /// Return the second pin of the source table; only the default directory has one.
    pub fn throttle_map(&self) -> Option<&'static Path> {
        (self.dir == Path::new(DEFAULT_PIN_DIR)).then(|| Path::new(THROTTLE_MAP))
    }

    /// Check whether a guard is, or was, loaded here.
    pub fn exist(&self) -> bool {
        self.map(name::FLOWS).exists() || self.schemas().is_ok_and(|found| !found.is_empty())
    }

    /// Create the directory and keep other daemons out of it while the lock is held.
    ///
    /// # Errors
    /// [`GuardError::InUse`] when another daemon is there.
    pub fn lock(&self) -> Result<Flock<File>, GuardError> {
        if self.dir.strip_prefix(bpffs::MOUNT_POINT).is_ok_and(|path| has_dot(path.as_os_str())) {
            return Err(GuardError::DotInPinDir(self.dir.clone()));
        }
        bpffs::ensure(&self.dir)?;
        self.make_directories()?;
        self.hold()
    }

    /// Create the missing directories.
    pub fn make_directories(&self) -> Result<(), GuardError> {
        for dir in [self.dir.clone(), self.links(), self.filters(), self.dir.join("programs")] {
            fs::create_dir_all(&dir).map_err(GuardError::pin("making", dir))?;
        }
        Ok(())
    }

    /// Lock an existing directory as [`Pins::lock`] does.
    ///
    /// # Errors
    /// [`GuardError::InUse`] when another daemon is there.
    pub fn hold(&self) -> Result<Flock<File>, GuardError> {
        let dir = File::open(&self.dir).map_err(GuardError::pin("opening", &self.dir))?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::Error::EWOULDBLOCK => GuardError::InUse(self.dir.clone()),
            errno => GuardError::pin("locking", &self.dir)(errno.into()),
        })
    }

    /// Compare the pins with this build; creates nothing.
    ///
    /// # Errors
    /// [`GuardError::Incompatible`] with the first difference; [`GuardError::Earlier`] for pins that a
    /// daemon would take over.
    pub fn check(&self) -> Result<(), GuardError> {
        let incompatible = |reason| GuardError::Incompatible(self.dir.clone(), reason);
        let wanted = schema_note(SCHEMA_VERSION);
        let schemas = self.schemas()?;
        if let Some(earlier) = migration::earlier_schema(self)? {
            return Err(GuardError::Earlier(self.dir.clone(), earlier));
        }
        if let Some(other) = schemas.iter().find(|schema| **schema != wanted) {
            return Err(incompatible(format!("they have {other}, this is {wanted}")));
        }
        for layout in &LAYOUTS {
            let Some(found) = self.found(layout)? else { continue };
            if schemas.is_empty() {
                return Err(incompatible(format!("{} has no schema version", layout.name)));
            }
            layout.check(&found).map_err(incompatible)?;
        }
        Ok(())
    }

    /// Return the map pinned for a layout, if any.
    pub fn found(&self, layout: &Layout) -> Result<Option<Found>, GuardError> {
        self.found_at(&self.map(layout.name))
    }

    /// Return the map pinned at a path, if any.
    pub fn found_at(&self, path: &Path) -> Result<Option<Found>, GuardError> {
        if !path.exists() {
            return Ok(None);
        }
        let unreadable = |error: aya::maps::MapError| {
            GuardError::Incompatible(self.dir.clone(), format!("{}: {error}", path.display()))
        };
        let info = MapInfo::from_pin(path).map_err(unreadable)?;
        Found::try_from(&info).map(Some).map_err(unreadable)
    }

    /// Write the note of the pins' schema version.
    pub fn write_schema(&self) -> Result<(), GuardError> {
        make_note(&self.dir.join(schema_note(SCHEMA_VERSION)))
    }

    /// Check for a schema version; there are two of them while a takeover is committed.
    pub fn has_schema(&self, version: u32) -> Result<bool, GuardError> {
        Ok(self.schemas()?.contains(&schema_note(version)))
    }

    pub fn remove_schema(&self, version: u32) -> Result<(), GuardError> {
        remove(&self.dir.join(schema_note(version))).map(drop)
    }

    /// Pin the source table a second time where the article's readers look for it.
    /// A foreign file there stays; the guard works without this pin.
    pub fn pin_throttle_map(&self) {
        let Some(path) = self.throttle_map() else { return };
        let result = (|| {
            let sources = MapData::from_pin(self.map(name::SOURCES))?;
            match MapInfo::from_pin(path) {
                Ok(found) if found.id() == sources.info()?.id() => Ok(()),
                Ok(_) => Err("another map is pinned there".into()),
                Err(_) => sources.pin(path).map_err(Box::<dyn std::error::Error>::from),
            }
        })();
        if let Err(error) = result {
            tracing::warn!(path = THROTTLE_MAP, %error, "the source table is not pinned here too");
        }
    }

    /// Return the attachments in order, as far as pins describe them.
    pub fn attachments(&self) -> Result<Vec<Pinned>, GuardError> {
        let mut pinned = Vec::new();
        for dir in [self.links(), self.filters()] {
            pinned.extend(names(&dir)?.iter().filter_map(|name| Pinned::parse(name)));
        }
        pinned.sort();
        pinned.dedup();
        Ok(pinned)
    }

    /// Return the schema versions in the directory: normally one.
    pub fn schemas(&self) -> Result<Vec<String>, GuardError> {
        Ok(names(&self.dir)?.into_iter().filter(|name| name.starts_with(SCHEMA)).collect())
    }
}

impl Pinned {
    fn file_name(&self) -> String {
        let role = if self.role == Role::Pod { POD } else { "" };
        let (direction, mode) = (self.direction.pin_name(), self.mode.name());
        format!("{role}{}-{direction}-{mode}", escape(&self.interface))
    }

    fn parse(file_name: &str) -> Option<Pinned> {
        let file_name = file_name.strip_suffix(NEXT).unwrap_or(file_name);
        let (role, file_name) = match file_name.strip_prefix(POD) {
            Some(rest) => (Role::Pod, rest),
            None => (Role::Uplink, file_name),
        };
        Mode::ALL.into_iter().find_map(|mode| {
            let rest = file_name.strip_suffix(mode.name())?.strip_suffix('-')?;
            Direction::ALL.into_iter().find_map(|direction| {
                let name = rest.strip_suffix(direction.pin_name())?.strip_suffix('-')?;
                Some(Pinned { interface: unescape(name), role, direction, mode })
            })
        })
    }
}

/// Return the interface of a note made by [`Pins::qdisc`].
pub fn parse_qdisc(file_name: &str) -> Option<Interface> {
    let (name, index) = file_name.rsplit_once("-qdisc-")?;
    Some(Interface { name: unescape(name), index: index.parse().ok()? })
}

/// Create a directory that serves as a note.
pub fn make_note(path: &Path) -> Result<(), GuardError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(GuardError::pin("making", path)),
    }
}

/// Remove a pin or a note; return whether there was one.
pub fn remove(path: &Path) -> Result<bool, GuardError> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(GuardError::pin("removing", path)(error)),
    }
}

/// Return the names in a directory, in order; none if the directory does not exist.
pub fn names(dir: &Path) -> Result<Vec<String>, GuardError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(GuardError::pin("listing", dir))?,
    };
    let names: io::Result<Vec<_>> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect();
    let mut names = names.map_err(GuardError::pin("listing", dir))?;
    names.sort();
    Ok(names)
}

fn schema_note(version: u32) -> String {
    format!("{SCHEMA}{version}")
}

fn has_dot(name: &OsStr) -> bool {
    name.as_encoded_bytes().contains(&b'.')
}

/// Escape dots, as in eth0.100: bpffs refuses them in names (EPERM).
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

fn unescape(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins_go_there_and_back() {
        let roles = [Role::Uplink, Role::Pod];
        for interface in ["eth0", "eth0.100", "a-in-tcx", "50%2E", "wg-out", "pod-x", "a*[b]"] {
            for (direction, role) in Direction::ALL.into_iter().flat_map(|d| roles.map(|r| (d, r)))
            {
                for mode in Mode::ALL {
                    let pinned = Pinned { interface: interface.into(), role, direction, mode };
                    let name = pinned.file_name();
                    assert!(!name.contains('.'), "{name}");
                    assert_eq!(Pinned::parse(&format!("{name}{NEXT}")).as_ref(), Some(&pinned));
                    assert_eq!(Pinned::parse(&name), Some(pinned));
                }
            }
        }
        assert_eq!(Pinned::parse("eth0-qdisc-4"), None);
        assert_eq!(Pinned::parse("links"), None);
    }

    #[test]
    fn only_the_default_directory_has_the_throttle_map() {
        assert_eq!(Pins::new(Path::new("/sys/fs/bpf/other")).throttle_map(), None);
        let default = Pins::new(Path::new("/sys/fs/bpf/ws-guard/"));
        assert_eq!(default.throttle_map(), Some(Path::new(THROTTLE_MAP)));
    }
}
