//! Network namespaces: the current one, and entering another.
//!
//! A link can be detached from anywhere; a netlink filter only from the namespace of its interface.
use std::{
    fs::{self, File},
    io,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Directory of the handles of `ip netns`.
const HANDLES: &str = "/run/netns";

/// Network namespace, by the inode under /proc, unique at any time (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace(pub u64);

impl Namespace {
    /// Return this thread's.
    pub fn current() -> io::Result<Namespace> {
        of(Path::new("/proc/thread-self/ns/net"))
    }

    /// Run `f` inside, on a thread of its own unless this one is inside.
    /// `None` if no process is inside and `ip netns` does not know the namespace.
    ///
    /// # Errors
    /// Entering it is refused (CAP_SYS_ADMIN).
    pub fn run<T: Send>(self, f: impl FnOnce() -> T + Send) -> io::Result<Option<T>> {
        if Namespace::current()? == self {
            return Ok(Some(f()));
        }
        let Some(handle) = self.handle() else { return Ok(None) };
        let handle = File::open(handle)?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(handle, CloneFlags::CLONE_NEWNET)?;
                Ok(f())
            });
            let result = inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.map(Some)
        })
    }

    /// Check whether the namespace can be found.
    pub fn is_reachable(self) -> bool {
        self.handle().is_some()
    }

    fn handle(self) -> Option<PathBuf> {
        let named = entries(Path::new(HANDLES));
        let processes = entries(Path::new("/proc")).map(|process| process.join("ns/net"));
        named.chain(processes).find(|path| of(path).is_ok_and(|found| found == self))
    }
}

fn of(path: &Path) -> io::Result<Namespace> {
    Ok(Namespace(fs::metadata(path)?.st_ino()))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gets_into_those_that_exist() {
        let here = Namespace::current().unwrap();
        assert!(here.is_reachable());
        assert_eq!(here.run(|| 7).unwrap(), Some(7));
        assert_eq!(Namespace(1).run(|| 7).unwrap(), None);
    }
}
