//! Permanent loss of every privilege.

use std::io;

use caps::CapSet;
use nix::{
    sys::prctl,
    unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid},
};

/// User and group of the server if the daemon is root.
/// systemd's conventions leave this number unassigned, so that no other process has it.
pub const USER: u32 = 60_700;

/// Failure to give up a privilege.
#[derive(Debug, thiserror::Error)]
pub enum Kept {
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("cannot rule out new privileges: {0}")]
    NewPrivileges(io::Error),
    #[error("capabilities are left after they were given up")]
    Left,
}

/// Switch to a user without rights, if root, and drop all capabilities for good.
/// No executed program can regain one. Call it before any thread starts: capabilities are per
/// thread.
///
/// # Errors
/// If a capability would remain.
pub fn give_up() -> Result<(), Kept> {
    for capability in caps::all() {
        // Needs CAP_SETPCAP, and kernel support. Otherwise no_new_privs makes the bounding set
        // irrelevant.
        let _ = caps::drop(None, CapSet::Bounding, capability);
    }
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
        let changed = setgroups(&[])
            .and_then(|()| setresgid(group, group, group))
            .and_then(|()| setresuid(user, user, user));
        if let Err(error) = changed {
            tracing::warn!(
                "the companion server stays root, without capabilities: it cannot become user {USER} ({error}); give CAP_SETUID and CAP_SETGID, or run as another user than root"
            );
        }
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    prctl::set_no_new_privs().map_err(|error| Kept::NewPrivileges(error.into()))?;
    let left = caps::read(None, CapSet::Permitted)?;
    if left.is_empty() { Ok(()) } else { Err(Kept::Left) }
}
