//! A control group, whose processes' sockets a program may watch.
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// How often, and how far apart, an empty group is looked for before it is left behind.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A group of cgroup v2 below this process's own; removed when dropped.
pub struct Cgroup {
    path: PathBuf,
    home: PathBuf,
}

impl Cgroup {
    pub fn new() -> Result<Cgroup> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let home = home()?;
        let name = format!("ws-guard-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = home.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Cgroup { path, home })
    }

    /// The group as programs are attached to it.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))
    }

    /// Do something as a member: sockets that are made, and processes that are started, stay in the
    /// group, and so do connections that such a socket accepts.
    pub fn inside<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        join(&self.path)?;
        let result = f();
        join(&self.home)?;
        result
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process may take a moment to be gone.
        for _ in 0..TRIES {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(PAUSE);
        }
        eprintln!("could not remove {}", self.path.display());
    }
}

fn join(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    let this = std::process::id().to_string();
    fs::write(&path, this).with_context(|| format!("writing {}", path.display()))
}

/// The group that this process is in (cgroups(7), /proc/PID/cgroup).
fn home() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then_some(path)
    });
    let mount = mount.context("cgroup v2 is not mounted here")?;
    let groups = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(mount).join(group.context("this process is in no group of cgroup v2")?))
}
