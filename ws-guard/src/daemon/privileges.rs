//! What the kernel wants of those who load programs.

use caps::{CapSet, Capability};

use crate::guard::GuardError;

/// Each with what it is needed for. CAP_SYS_ADMIN stands for all but CAP_NET_ADMIN.
pub const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "to load programs and open maps"),
    (Capability::CAP_NET_ADMIN, "to attach to interfaces"),
    (Capability::CAP_PERFMON, "to pass the verifier with pointer arithmetic"),
];

/// The capabilities that are missing.
pub fn missing() -> Vec<(Capability, &'static str)> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let admin = has(Capability::CAP_SYS_ADMIN);
    let lacks = |(capability, _): &(Capability, &str)| {
        !has(*capability) && !(admin && *capability != Capability::CAP_NET_ADMIN)
    };
    NEEDED.into_iter().filter(lacks).collect()
}

/// An error that names what is missing.
pub fn check() -> Result<(), GuardError> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        missing.iter().map(|(capability, why)| format!("{capability} ({why})")).collect();
    Err(GuardError::Privileges(format!(
        "{}; run as root, or give them with `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` or AmbientCapabilities=",
        list.join(", ")
    )))
}
