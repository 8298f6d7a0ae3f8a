//! Errors between the daemon and the kernel, with remedies.
use std::{io, path::PathBuf};

/// Error of the guard. Every message names the value, the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(
        "no guard is loaded under {0}: start one with `ws-guard run`, or name another --pin-dir"
    )]
    NotLoaded(PathBuf),
    #[error(
        "the maps pinned under {0} were made by another version of ws-guard ({1}): remove them with `ws-guard unload`, or use another --pin-dir"
    )]
    Incompatible(PathBuf, String),
    #[error(
        "the maps pinned under {0} have schema {1}, which an earlier version of ws-guard made: `ws-guard run` of this version takes them over"
    )]
    Earlier(PathBuf, u32),
    #[error(
        "another ws-guard runs with the pin directory {0}: stop it first, or use another --pin-dir"
    )]
    InUse(PathBuf),
    #[error(
        "interface {0} does not exist: see `ip link` for those that do, or wait for it with a pattern, such as '{0}*'"
    )]
    NoInterface(String),
    #[error(
        "{interface} has packets without an Ethernet header (link type {kind}), which cannot be followed: guard the Ethernet interface that they come in through, with --tunnel where they are in VXLAN, Geneve or IP in IP, or with --pod-interface those that they go to"
    )]
    NoEthernet { interface: String, kind: String },
    #[error(
        "{0:?} is not a name that an interface can have: 1 to 15 bytes, no slash, colon or white space"
    )]
    BadInterfaceName(String),
    #[error(
        "the filters on {interface} are still in force: they are in the network namespace {namespace}, which cannot be entered ({reason}); run this again inside it, with `nsenter --net=FILE`, or where it is gone for good, remove the pin directory with `rm -r`"
    )]
    Unreachable { interface: String, namespace: u64, reason: String },
    #[error("missing privileges: {0}")]
    Privileges(String),
    #[error(
        "{path} is not on a BPF file system and none can be mounted ({reason}): run `mount -t bpf bpf /sys/fs/bpf`, or name a --pin-dir on one"
    )]
    NoBpffs { path: PathBuf, reason: String },
    #[error(
        "the pin directory {0} holds a dot, which the BPF file system refuses in names: choose another --pin-dir"
    )]
    DotInPinDir(PathBuf),
    #[error(
        "cannot attach to {direction} of {interface}: {reasons}; free what is taken, or choose another --attach"
    )]
    Attach { interface: String, direction: &'static str, reasons: String },
    #[error(
        "the kernel programs in {place} do not fit this build of ws-guard ({reason}): use the object that belongs to it"
    )]
    Object { place: String, reason: String },
    #[error("the kernel refused {what}: {reason}; `ws-guard doctor` lists what this kernel lacks")]
    Load { what: String, reason: String },
    #[error("map {map}: {operation} failed: {source}")]
    Map { map: &'static str, operation: &'static str, source: io::Error },
    #[error("map {map} is full ({max_entries} entries): remove some, or load with a larger table")]
    MapFull { map: &'static str, max_entries: u32 },
    #[error("{network}/{prefix} is not a network: the prefix length is at most {longest}")]
    BadPrefix { network: std::net::IpAddr, prefix: u8, longest: u8 },
    #[error("cannot run the control program: {0}")]
    Control(String),
    #[error("cannot read the kernel's events: {0}")]
    Events(String),
    #[error("asking the kernel about {what}: {source}")]
    Netlink { what: String, source: io::Error },
    #[error("{operation} {path}: {source}")]
    Pin { operation: &'static str, path: PathBuf, source: io::Error },
}

impl GuardError {
    pub(super) fn pin(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| GuardError::Pin { operation, path, source }
    }

    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| GuardError::Netlink { what, source }
    }
}
