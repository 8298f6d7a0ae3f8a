//! Capabilities that the guard needs, and those that this process lacks.
use std::path::Path;

use caps::{CapSet, Capability};

use super::{bpffs, error::GuardError};

/// Missing capability and its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingCapability {
    /// Name in capabilities(7).
    pub name: &'static str,
    pub purpose: &'static str,
}

impl std::fmt::Display for MissingCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.purpose)
    }
}

/// Capabilities needed besides CAP_SYS_ADMIN, which only mounting bpffs requires.
const NEEDED: [(Capability, MissingCapability); 3] = [
    (
        Capability::CAP_BPF,
        MissingCapability { name: "CAP_BPF", purpose: "load programs and open maps" },
    ),
    (
        Capability::CAP_NET_ADMIN,
        MissingCapability { name: "CAP_NET_ADMIN", purpose: "attach to interfaces" },
    ),
    (
        Capability::CAP_PERFMON,
        MissingCapability {
            name: "CAP_PERFMON",
            purpose: "let the verifier accept pointer arithmetic",
        },
    ),
];

/// Make the needed capabilities effective, as far as they are permitted.
///
/// The container image's binary has them in its file, permitted but not effective
/// (capabilities(7)): with the effective bit, the kernel would not even start it in a container
/// that has fewer, such as the companion server's. Call it before starting threads; capabilities
/// that cannot be raised are named by [`missing_capabilities`].
pub fn raise_permitted() {
    for (capability, _) in NEEDED {
        if caps::has_cap(None, CapSet::Permitted, capability).unwrap_or(false) {
            // A permitted capability can always be made effective.
            let _ = caps::raise(None, CapSet::Effective, capability);
        }
    }
}

/// Return the capabilities that this process lacks for `run`, pinning in `pin_dir`.
/// Empty if it may run.
///
/// CAP_SYS_ADMIN implies CAP_BPF and CAP_PERFMON, as in the kernel; it is itself needed only where
/// no BPF file system is mounted yet, and listed only then.
pub fn missing_capabilities(pin_dir: &Path) -> Vec<MissingCapability> {
    let mut missing = lacking();
    if !has(Capability::CAP_SYS_ADMIN) && bpffs::wants_mount(pin_dir) {
        missing.push(MissingCapability {
            name: "CAP_SYS_ADMIN",
            purpose: "mount the BPF file system at /sys/fs/bpf, if it is not mounted",
        });
    }
    missing
}

fn lacking() -> Vec<MissingCapability> {
    let admin = has(Capability::CAP_SYS_ADMIN);
    let lacks =
        |capability| !has(capability) && (!admin || capability == Capability::CAP_NET_ADMIN);
    NEEDED.into_iter().filter(|(needed, _)| lacks(*needed)).map(|(_, missing)| missing).collect()
}

/// # Errors
/// [`GuardError::Privileges`] with all that [`missing_capabilities`] names.
pub(super) fn check(pin_dir: &Path) -> Result<(), GuardError> {
    refuse(missing_capabilities(pin_dir))
}

/// Check the capabilities for listings from the pins, which need fewer.
pub(super) fn check_for_maps() -> Result<(), GuardError> {
    refuse(lacking().into_iter().filter(|missing| missing.name == "CAP_BPF").collect())
}

fn refuse(missing: Vec<MissingCapability>) -> Result<(), GuardError> {
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(GuardError::Privileges(format!(
        "{}; run as root, or give them with `setcap` or the service's AmbientCapabilities",
        list.join(", ")
    )))
}

/// Check for a capability; one unknown to the kernel counts as missing.
fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}
