//! Kernel objects of a guard, and a check that none is left behind.
//!
//! Other guards may run on the machine at the same time, so the check is for the very
//! programs, maps and links of this guard, by their ids, and not for anything new.
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

/// Time for the kernel to free programs and maps without further references.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kind of an object, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Program(u32),
    Map(u32),
    Link(u32),
}

/// Objects of a guard in the kernel and in the file system.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Objects, each with the place where it was seen.
    objects: BTreeMap<Object, String>,
    paths: Vec<PathBuf>,
}

impl Footprint {
    /// Add everything that the process has open.
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

    /// Add a line of /proc/PID/fdinfo/FD, as written by `bpf_*_show_fdinfo`.
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

    /// Add everything pinned below a directory; the directory itself must go too.
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

    /// Add a file or folder that must not exist afterwards.
    pub fn add_path(&mut self, path: &Path) {
        if !self.paths.iter().any(|known| known == path) {
            self.paths.push(path.to_owned());
        }
    }

    /// Return the number of its programs, maps and links.
    pub fn counts(&self) -> [usize; 3] {
        let count = |wanted: fn(&Object) -> bool| self.objects.keys().filter(|o| wanted(o)).count();
        [
            count(|object| matches!(object, Object::Program(_))),
            count(|object| matches!(object, Object::Map(_))),
            count(|object| matches!(object, Object::Link(_))),
        ]
    }

    /// Wait until everything is gone.
    ///
    /// # Errors
    /// If anything is still there after 5 s; the message names each object.
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
        // An object may go while the list is walked; the list has those that stay in any case.
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

/// Kernel objects of a guard, found from the maps that it has pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Programs that use one of the pinned maps, with their tags: instruction hashes.
    pub programs: BTreeMap<u32, u64>,
    /// Maps used by those, and pinned ones.
    pub maps: BTreeSet<u32>,
    /// Links that hold one of the programs.
    pub links: BTreeSet<u32>,
    /// Pins, by path below the pin directory.
    pub pins: BTreeSet<PathBuf>,
}

impl Holdings {
    /// Find the objects, whose holders are a daemon, an interface, or a pin.
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

/// Describe an interface's XDP state, queueing disciplines and filters.
/// It is for a comparison before and after.
pub fn hooks(namespace: &Namespace, interface: &str) -> Result<String> {
    let run = |words: &[&str]| -> Result<String> {
        let output = namespace.command(words[0]).args(&words[1..]).output();
        let output = output.with_context(|| format!("running {words:?}"))?;
        // Without clsact, tc reports that on standard error.
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
