//! Loading, attaching and pinning the kernel programs, and typed access to their maps.
//!
//! THE SEAM between the kernel-side work and the rest of the daemon. Signatures may grow, not shrink.
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use ws_guard_common::{
    flow::Flow,
    maps::{Address, Counters, Event, FlowKey, Pending, Policy, Request, Rule},
    source::Source,
};

/// How a direction is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    XdpNative,
    XdpGeneric,
    Tcx,
    Clsact,
}

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AttachMode {
    #[default]
    Auto,
    XdpNative,
    XdpGeneric,
    Tcx,
    Clsact,
}

/// One interface and how it is attached; `None` while it is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub name: String,
    pub ingress: Option<Mode>,
    pub egress: Option<Mode>,
}

/// Sizes of the tables; fixed while the pins live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    pub flows: u32,
    pub sources: u32,
    pub pending: u32,
    pub rules: u32,
}

pub struct LoadOptions {
    pub pin_dir: PathBuf,
    pub sizes: TableSizes,
    pub kernel_debug_log: bool,
}

/// The maps, by their types. Cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Maps {}

impl Maps {
    /// Open the maps of a guard that runs, or ran, from its pins. No program is needed.
    pub fn from_pins(_pin_dir: &Path) -> Result<Maps, GuardError> {
        unimplemented!()
    }
    /// All flows: batch look-ups with BPF_F_LOCK, so that each value is consistent.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, GuardError> {
        unimplemented!()
    }
    pub fn pending(&self) -> Result<Vec<(FlowKey, Pending)>, GuardError> {
        unimplemented!()
    }
    pub fn sources(&self) -> Result<Vec<(Address, Source)>, GuardError> {
        unimplemented!()
    }
    pub fn source(&self, _source: &Address) -> Result<Option<Source>, GuardError> {
        unimplemented!()
    }
    /// Entries in use, without reading the values where the kernel can tell.
    pub fn flow_count(&self) -> Result<u32, GuardError> {
        unimplemented!()
    }
    pub fn source_count(&self) -> Result<u32, GuardError> {
        unimplemented!()
    }
    pub fn table_sizes(&self) -> TableSizes {
        unimplemented!()
    }
    /// Remove a flow (used to forget flows that closed a while ago).
    pub fn remove_flow(&self, _key: &FlowKey) -> Result<(), GuardError> {
        unimplemented!()
    }
    /// Summed over the CPUs.
    pub fn counters(&self) -> Result<Box<Counters>, GuardError> {
        unimplemented!()
    }
    pub fn policy(&self) -> Result<Policy, GuardError> {
        unimplemented!()
    }
    /// Takes effect on the next packet, whole: writes the slot not in force, then switches.
    pub fn set_policy(&self, _policy: &Policy) -> Result<(), GuardError> {
        unimplemented!()
    }
    pub fn ports(&self) -> Result<Vec<u16>, GuardError> {
        unimplemented!()
    }
    pub fn set_ports(&self, _ports: &[u16]) -> Result<(), GuardError> {
        unimplemented!()
    }
    /// Prefix lengths are those of the address family (0..=32 or 0..=128).
    pub fn rules(&self) -> Result<Vec<(IpAddr, u8, Rule)>, GuardError> {
        unimplemented!()
    }
    pub fn set_rule(&self, _network: IpAddr, _prefix: u8, _rule: Rule) -> Result<(), GuardError> {
        unimplemented!()
    }
    pub fn remove_rule(&self, _network: IpAddr, _prefix: u8) -> Result<bool, GuardError> {
        unimplemented!()
    }
    /// Run the control program; returns one of `ws_guard_common::maps::answer`.
    pub fn request(&self, _request: &Request) -> Result<u32, GuardError> {
        unimplemented!()
    }
}

/// The loaded programs. Dropping it leaves protection in place: everything is pinned.
pub struct Guard {}

impl Guard {
    /// Load the object, taking over the pinned maps where there are some and they fit.
    pub fn load(_options: &LoadOptions) -> Result<Guard, GuardError> {
        unimplemented!()
    }
    pub fn maps(&self) -> Maps {
        unimplemented!()
    }
    /// Attach to an interface, taking over its pinned links without an unguarded packet.
    pub fn attach(
        &mut self,
        _interface: &str,
        _mode: AttachMode,
    ) -> Result<Attachment, GuardError> {
        unimplemented!()
    }
    /// Forget an interface that went away; its pins are removed.
    pub fn detach(&mut self, _interface: &str) -> Result<(), GuardError> {
        unimplemented!()
    }
    pub fn attachments(&self) -> Vec<Attachment> {
        unimplemented!()
    }
    /// The ring buffer's records, as they come; the task ends when the receiver is dropped.
    pub fn events(&mut self) -> Result<tokio::sync::mpsc::Receiver<Event>, GuardError> {
        unimplemented!()
    }
}

/// What is attached according to the pins, with the daemon down.
pub fn pinned_attachments(_pin_dir: &Path) -> Result<Vec<Attachment>, GuardError> {
    unimplemented!()
}
/// Remove programs, links, maps and pins; returns what was removed, for the user to read.
pub fn unload(_pin_dir: &Path) -> Result<Vec<String>, GuardError> {
    unimplemented!()
}

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
    #[error("interface {0} does not exist")]
    NoInterface(String),
    #[error("missing privileges: {0}")]
    Privileges(String),
    #[error("{0}")]
    Other(String),
}
