//! What a guard has in the kernel, and whether any of it is still there afterwards.
//!
//! Other guards may run on the machine at the same time, so what is looked for are the very
//! programs, maps and links that this guard had, by their ids, and not whatever is new.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{
        ProgramInfo,
        links::{FdLink, PinnedLink},
        loaded_links, loaded_programs,
    },
};

use crate::netns::Namespace;

/// The kernel frees programs and maps a moment after their last reference went.
const PATIENCE: Duration = Duration::from_secs(5);

/// A kind of object, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Program(u32),
    Map(u32),
    Link(u32),
}

/// What a guard has in the kernel and in the file system.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// With where it was seen.
    objects: BTreeMap<Object, String>,
    paths: Vec<PathBuf>,
}

impl Footprint {
    /// All that the process has open.
    pub fn add_process(&mut self, pid: u32) -> Result<()> {
        let folder = PathBuf::from(format!("/proc/{pid}/fdinfo"));
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            // A descriptor may be closed meanwhile.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for line in text.lines() {
                self.add_line(line, &format!("open in process {pid}"));
            }
        }
        Ok(())
    }

    /// A line of /proc/PID/fdinfo/FD, as the kernel's `bpf_*_show_fdinfo` write it.
    fn add_line(&mut self, line: &str, place: &str) {
        let Some((name, value)) = line.split_once(':') else { return };
        let Ok(id) = value.trim().parse() else { return };
        let object = match name {
            "prog_id" => Object::Program(id),
            "map_id" => Object::Map(id),
            "link_id" => Object::Link(id),
            _ => return,
        };
        self.objects.insert(object, place.to_owned());
    }

    /// All that is pinned below a directory; the directory itself must go too.
    pub fn add_pins(&mut self, folder: &Path) -> Result<()> {
        self.add_path(folder);
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_pins(&path)?;
            } else if let Some(object) = pinned(&path) {
                self.objects.insert(object, path.display().to_string());
            }
        }
        Ok(())
    }

    /// A file or folder that must not be there afterwards.
    pub fn add_path(&mut self, path: &Path) {
        if !self.paths.iter().any(|known| known == path) {
            self.paths.push(path.to_owned());
        }
    }

    /// How many programs, maps and links it has.
    pub fn counts(&self) -> [usize; 3] {
        let count = |wanted: fn(&Object) -> bool| self.objects.keys().filter(|o| wanted(o)).count();
        [
            count(|object| matches!(object, Object::Program(_))),
            count(|object| matches!(object, Object::Map(_))),
            count(|object| matches!(object, Object::Link(_))),
        ]
    }

    /// # Errors
    /// When something of it is still there after 5 s; the message names each.
    pub fn assert_gone(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.left()?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left behind: {}", left.join(", "));
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn left(&self) -> Result<Vec<String>> {
        let mut alive = Vec::new();
        // One may go while the list is walked; those that stay are in it all the same.
        alive.extend(loaded_programs().flatten().map(|program| Object::Program(program.id())));
        alive.extend(loaded_maps().flatten().map(|map| Object::Map(map.id())));
        alive.extend(loaded_links().flatten().map(|link| Object::Link(link.id())));
        let objects = alive.iter().filter_map(|object| {
            self.objects.get(object).map(|place| format!("{object:?} ({place})"))
        });
        let paths = self.paths.iter().filter(|path| path.exists());
        Ok(objects.chain(paths.map(|path| path.display().to_string())).collect())
    }
}

fn pinned(path: &Path) -> Option<Object> {
    if let Ok(link) = PinnedLink::from_pin(path) {
        return FdLink::from(link).info().ok().map(|info| Object::Link(info.id()));
    }
    if let Ok(map) = MapInfo::from_pin(path) {
        return Some(Object::Map(map.id()));
    }
    ProgramInfo::from_pin(path).ok().map(|program| Object::Program(program.id()))
}

/// What a guard holds of the kernel, found from the maps that it has pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Programs that use one of the pinned maps, with their tags: a hash of their instructions.
    pub programs: BTreeMap<u32, u64>,
    /// Maps that those use, and those that are pinned.
    pub maps: BTreeSet<u32>,
    /// Links that hold one of the programs.
    pub links: BTreeSet<u32>,
    /// What is pinned, by path below the pin directory.
    pub pins: BTreeSet<PathBuf>,
}

impl Holdings {
    /// Their holders: a daemon, an interface, a pin.
    pub fn of(pin_dir: &Path) -> Result<Holdings> {
        let mut holdings = Holdings::default();
        holdings.add_pins(pin_dir, pin_dir)?;
        let pinned = holdings.maps.clone();
        for program in loaded_programs().flatten() {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            if used.iter().any(|map| pinned.contains(map)) {
                holdings.maps.extend(used);
                holdings.programs.insert(program.id(), program.tag());
            }
        }
        let links = loaded_links().flatten();
        let ours = links.filter(|link| holdings.programs.contains_key(&link.program_id()));
        holdings.links = ours.map(|link| link.id()).collect();
        Ok(holdings)
    }

    fn add_pins(&mut self, pin_dir: &Path, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_pins(pin_dir, &path)?;
                continue;
            }
            if let Some(Object::Map(id)) = pinned(&path) {
                self.maps.insert(id);
            }
            self.pins.insert(path.strip_prefix(pin_dir)?.to_owned());
        }
        Ok(())
    }
}

/// What hangs on an interface, for a comparison before and after: whether XDP does, its queueing
/// disciplines and filters.
pub fn hooks(namespace: &Namespace, interface: &str) -> Result<String> {
    let run = |words: &[&str]| -> Result<String> {
        let output = namespace.command(words[0]).args(&words[1..]).output();
        let output = output.with_context(|| format!("running {words:?}"))?;
        // Where there is no clsact, tc says so on standard error.
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let link = run(&["ip", "-o", "link", "show", "dev", interface])?;
    let mut text = format!("XDP: {}\n", link.contains("xdp"));
    text.push_str(&run(&["tc", "qdisc", "show", "dev", interface])?);
    for side in ["ingress", "egress"] {
        text.push_str(&run(&["tc", "filter", "show", "dev", interface, side])?);
    }
    Ok(text)
}
