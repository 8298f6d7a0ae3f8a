//! BPF file system, which keeps pins alive.
use std::{
    fs::{self, File},
    path::Path,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::error::GuardError;

/// Mount point of the BPF file system (Linux: Documentation/bpf).
pub const MOUNT_POINT: &str = "/sys/fs/bpf";
/// Parent of the mount point, which exists where mounting is possible at all.
const LOCKED: &str = "/sys/fs";
/// BPF_FS_MAGIC of linux/magic.h.
const MAGIC: FsType = FsType(0xCAFE_4A11);

/// Check whether `path`, or the nearest existing parent, is on a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|found| found.filesystem_type() == MAGIC)
}

/// Check whether [`ensure`] would have to mount a BPF file system for `pin_dir`.
pub fn wants_mount(pin_dir: &Path) -> bool {
    pin_dir.starts_with(MOUNT_POINT) && !is_bpffs(pin_dir)
}

/// Ensure that `pin_dir` is, or can be created, on a BPF file system.
/// If there is none, mount one at [`MOUNT_POINT`].
///
/// # Errors
/// [`GuardError::NoBpffs`] when the directory is elsewhere, or mounting is refused.
pub fn ensure(pin_dir: &Path) -> Result<(), GuardError> {
    if is_bpffs(pin_dir) {
        return Ok(());
    }
    let no_bpffs = |reason: String| GuardError::NoBpffs { path: pin_dir.into(), reason };
    if !pin_dir.starts_with(MOUNT_POINT) {
        return Err(no_bpffs(format!("only {MOUNT_POINT} is mounted automatically")));
    }
    // Two daemons that start at once must not mount one file system over the other.
    let lock = File::open(LOCKED).map_err(|error| no_bpffs(format!("{LOCKED}: {error}")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| no_bpffs(format!("locking {LOCKED}: {error}")))?;
    if is_bpffs(pin_dir) {
        return Ok(());
    }
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|error| no_bpffs(format!("mounting {MOUNT_POINT}: {error}")))?;
    tracing::info!(path = MOUNT_POINT, "mounted the missing BPF file system");
    warn_of_private_mount();
    Ok(())
}

/// Warn of a private mount namespace, as of `ip netns exec`, with a fresh /sys.
fn warn_of_private_mount() {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    if let (Some(own), Some(first)) = (namespace("self"), namespace("1"))
        && own != first
    {
        tracing::warn!(
            "this process has a mount namespace of its own, so the pins are seen in it alone and \
             vanish with it: enter network namespaces with `nsenter --net=FILE`, not with `ip \
             netns exec`, and give containers the host's {MOUNT_POINT}"
        );
    }
}
