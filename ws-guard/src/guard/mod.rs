//! Loading, attaching and pinning of the kernel programs, and typed maps.
//!
//! [`Guard::load`] loads the programs with the pinned maps, [`Guard::attach`] and
//! [`Guard::attach_pod`] attach them to an interface in its best mode, taking over from an earlier
//! daemon, and [`Guard::maps`] gives the tables. Everything is pinned (see [`pins`]): dropping the
//! guard, or killing the daemon, leaves protection in place. [`unload()`] removes it.
//!
//! | subject | modules |
//! |---|---|
//! | object file, layout of maps | [`object`], [`layout`] |
//! | loading, pin directory, bpffs | [`load`], [`pins`], [`bpffs`] |
//! | pins of an earlier schema | [`migration`] |
//! | supported kernels | [`kernel`] |
//! | interfaces and their roles | [`selection`], [`role`], [`interfaces`] |
//! | attach modes, links, filters | [`attach`], [`links`], [`clsact`], [`namespaces`], [`precedence`], [`inspection`] |
//! | tables, policy, networks, counters | [`maps`], [`table`], [`policy`], [`networks`], [`counters`], [`servers`] |
//! | detaching, unloading | [`detach`], [`unload`](mod@unload) |
//! | requests, events, debug log | [`control`], [`events`], [`debug_log`] |
mod attach;
mod bpffs;
mod clsact;
mod control;
mod counters;
mod debug_log;
mod detach;
mod error;
mod events;
mod inspection;
pub mod interfaces;
pub mod kernel;
mod layout;
mod links;
mod load;
mod maps;
mod memory;
mod migration;
mod namespaces;
mod netlink;
mod networks;
mod object;
mod pins;
mod plain;
mod policy;
mod precedence;
mod privileges;
mod role;
mod selection;
mod servers;
mod sys;
mod table;
mod unload;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use aya::Ebpf;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use ws_guard_common::maps::{Event, Tunnels};

use self::{
    attach::Attacher, interfaces::Interface, migration::Migration, pins::Pins, role::Direction,
};
pub use self::{
    bpffs::{MOUNT_POINT as BPFFS_MOUNT_POINT, is_bpffs},
    error::GuardError,
    inspection::Lost,
    interfaces::{InterfaceEvent, InterfaceWatcher},
    maps::{Handshakes, Maps},
    memory::{MapMemory, Memory},
    networks::{NetworkRule, canonical},
    object::OBJECT_VARIABLE,
    pins::{DEFAULT_PIN_DIR, THROTTLE_MAP},
    policy::PolicySet,
    precedence::{Overtaken, overtaken},
    privileges::{MissingCapability, missing_capabilities, raise_permitted},
    role::Role,
    selection::{Selection, Selector},
};

/// Mode of attachment of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// XDP in the driver, before the kernel has a packet buffer.
    XdpNative,
    /// XDP in the kernel's receive path: slower, on every interface.
    XdpGeneric,
    /// A TC program on a link (Linux 6.6).
    Tcx,
    /// A TC program as a netlink filter on the clsact qdisc.
    Clsact,
}

impl Mode {
    /// All modes, best first.
    pub const ALL: [Mode; 4] = [Mode::XdpNative, Mode::XdpGeneric, Mode::Tcx, Mode::Clsact];

    /// Return the name in options, JSON, metrics and pins.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::XdpNative => "xdp-native",
            Mode::XdpGeneric => "xdp-generic",
            Mode::Tcx => "tcx",
            Mode::Clsact => "clsact",
        }
    }

    const fn is_xdp(self) -> bool {
        matches!(self, Mode::XdpNative | Mode::XdpGeneric)
    }
}

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AttachMode {
    /// The best that the interface offers, in the order of [`Mode::ALL`].
    #[default]
    Auto,
    XdpNative,
    XdpGeneric,
    Tcx,
    Clsact,
}

/// Interface and its modes of attachment; `None` while it is awaited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub name: String,
    #[serde(default)]
    pub role: Role,
    pub ingress: Option<Mode>,
    pub egress: Option<Mode>,
}

/// Sizes of the tables in entries; fixed while the pins exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    pub flows: u32,
    pub sources: u32,
    pub pending: u32,
    pub rules: u32,
    /// Size of each table of connections without a flow: LRU tables, which cannot grow.
    pub opening: u32,
}

impl TableSizes {
    /// Size of the table of pending handshakes, and minimum of any LRU table.
    /// Each CPU may keep 128 entries free.
    const FEWEST: u32 = 4096;
    /// Size of the allowlist.
    const RULES: u32 = 4096;

    /// Derive all sizes from those that an operator chooses.
    pub fn new(flows: u32, sources: u32) -> TableSizes {
        let opening = (flows / 16 * 3).max(Self::FEWEST);
        TableSizes { flows, sources, pending: Self::FEWEST, rules: Self::RULES, opening }
    }
}

/// Options of [`Guard::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// On a BPF file system; [`DEFAULT_PIN_DIR`] unless several guards share one host.
    pub pin_dir: PathBuf,
    /// Sizes of tables that are not pinned yet.
    pub sizes: TableSizes,
    /// Tunnels to look into. Without any, the programs contain no code for them.
    pub tunnels: Tunnels,
    /// Let the programs log their actions (slow). Otherwise they contain no log calls.
    pub kernel_debug_log: bool,
}

/// Loaded programs. Dropping them leaves protection in place: everything is pinned.
pub struct Guard {
    ebpf: Ebpf,
    /// TC programs for pods' interfaces; loaded when first needed.
    pod_ebpf: Option<Ebpf>,
    options: LoadOptions,
    pins: Pins,
    maps: Maps,
    /// Set until the first program is attached.
    migration: Option<Migration>,
    attachments: BTreeMap<String, Attachment>,
    events_dropped: Arc<AtomicU64>,
    /// Keeps other daemons out of the pin directory.
    _lock: Flock<File>,
}

impl Guard {
    /// Load the object, taking over compatible pinned maps.
    ///
    /// Mounts bpffs if there is none. With `kernel_debug_log`, needs a tokio runtime.
    ///
    /// # Errors
    /// [`GuardError::Privileges`], [`GuardError::NoBpffs`], [`GuardError::InUse`],
    /// [`GuardError::Incompatible`], [`GuardError::Object`], [`GuardError::Load`]. A first load
    /// that fails leaves nothing behind; existing pins stay untouched, also those of an earlier
    /// schema.
    pub fn load(options: &LoadOptions) -> Result<Guard, GuardError> {
        privileges::check(&options.pin_dir)?;
        let pins = Pins::new(&options.pin_dir);
        let existed = pins.exist();
        let lock = pins.lock()?;
        let loaded = load::load(&pins, options)
            .and_then(|(ebpf, migration)| Ok((ebpf, migration, Maps::open(&pins)?)));
        let (ebpf, migration, maps) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                if !existed {
                    unload::discard(&pins);
                }
                return Err(error);
            }
        };
        pins.pin_throttle_map();
        let attachments = BTreeMap::new();
        let events_dropped = Arc::default();
        let options = options.clone();
        let pod_ebpf = None;
        Ok(Guard {
            ebpf,
            pod_ebpf,
            options,
            pins,
            maps,
            migration,
            attachments,
            events_dropped,
            _lock: lock,
        })
    }

    /// Return the maps; cheap.
    pub fn maps(&self) -> Maps {
        self.maps.clone()
    }

    /// Attach to an interface, taking over pinned links without an unguarded packet.
    ///
    /// An attachment in a mode that `mode` allows is kept, with the new programs in it. May be
    /// called again for an interface that was recreated. The interface is looked up in this
    /// thread's network namespace.
    ///
    /// # Errors
    /// [`GuardError::NoInterface`], [`GuardError::BadInterfaceName`], [`GuardError::NoEthernet`],
    /// [`GuardError::Attach`] with the reason of each mode, [`GuardError::Privileges`].
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<Attachment, GuardError> {
        let interface = Interface::find(interface)?;
        self.end_migration()?;
        let (role, pins) = (Role::Uplink, &self.pins);
        let attachment = Attacher { ebpf: &mut self.ebpf, pins, interface, role }.attach(mode)?;
        self.attachments.insert(attachment.name.clone(), attachment.clone());
        Ok(attachment)
    }

    /// Attach to the host's side of a pod's veth pair, as [`Guard::attach`].
    /// Clients' packets are on egress there and servers' on ingress. Only TC has hooks on both, so
    /// an XDP mode means the best TC mode.
    ///
    /// # Errors
    /// As [`Guard::attach`], and as [`Guard::load`] the first time.
    pub fn attach_pod(
        &mut self,
        interface: &str,
        mode: AttachMode,
    ) -> Result<Attachment, GuardError> {
        let interface = Interface::find(interface)?;
        self.load_for_pods()?;
        self.end_migration()?;
        let Some(ebpf) = &mut self.pod_ebpf else {
            return Err(GuardError::NotLoaded(self.options.pin_dir.clone()));
        };
        let (role, pins) = (Role::Pod, &self.pins);
        let attachment = Attacher { ebpf, pins, interface, role }.attach(mode)?;
        self.attachments.insert(attachment.name.clone(), attachment.clone());
        Ok(attachment)
    }

    /// Read what the old programs have written since [`Guard::load`].
    /// To be called before the first of them is replaced.
    fn end_migration(&mut self) -> Result<(), GuardError> {
        self.migration.take().map_or(Ok(()), |migration| migration.read(&self.pins))
    }

    /// Load the programs of [`Guard::attach_pod`], so that the first pod need not wait.
    ///
    /// # Errors
    /// As [`Guard::load`].
    pub fn load_for_pods(&mut self) -> Result<(), GuardError> {
        if self.pod_ebpf.is_none() {
            self.pod_ebpf = Some(load::load_for_pods(&self.pins, &self.options)?);
        }
        Ok(())
    }

    /// Stop guarding an interface, or forget one that is gone; remove its pins.
    pub fn detach(&mut self, interface: &str) -> Result<(), GuardError> {
        detach::detach(&self.pins, interface)?;
        self.attachments.remove(interface);
        Ok(())
    }

    /// Return the attachments of [`Guard::attach`], in order of the names.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.attachments.values().cloned().collect()
    }

    /// Return a channel of the ring buffer's records.
    /// Its task ends when the receiver is dropped. Only one receiver at a time gets any. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`GuardError::Events`].
    pub fn events(&mut self) -> Result<mpsc::Receiver<Event>, GuardError> {
        events::read(&self.pins, Arc::clone(&self.events_dropped))
    }

    /// Return the number of events that the receiver was too slow for.
    /// (Those without room in the ring buffer are `Counter::EventsLost`.)
    pub fn events_dropped(&self) -> u64 {
        self.events_dropped.load(Relaxed)
    }
}

/// Return the interfaces with pins, including those that are gone.
///
/// # Errors
/// [`GuardError::Pin`] if they cannot be listed.
pub fn pinned_interfaces(pin_dir: &Path) -> Result<BTreeSet<String>, GuardError> {
    let pinned = Pins::new(pin_dir).attachments()?;
    Ok(pinned.into_iter().map(|pinned| pinned.interface).collect())
}

/// Return the attachments according to the pins, without a daemon.
/// Interfaces that are gone are left out.
///
/// # Errors
/// [`GuardError::NotLoaded`].
pub fn pinned_attachments(pin_dir: &Path) -> Result<Vec<Attachment>, GuardError> {
    let pins = Pins::new(pin_dir);
    if !pins.exist() {
        return Err(GuardError::NotLoaded(pin_dir.into()));
    }
    let mut attachments = BTreeMap::new();
    for pinned in pins.attachments()? {
        let path = pins.attachment(&pinned);
        let alive = match pinned.mode {
            Mode::Clsact => clsact::is_alive(&pins, &pinned)?,
            _ => sys::pinned_link(&path).is_ok_and(|link| link.interface != 0),
        };
        if alive {
            let key = (pinned.interface.clone(), pinned.role);
            let attachment = attachments.entry(key).or_insert(Attachment {
                name: pinned.interface,
                role: pinned.role,
                ingress: None,
                egress: None,
            });
            match pinned.direction {
                Direction::Ingress => attachment.ingress = Some(pinned.mode),
                Direction::Egress => attachment.egress = Some(pinned.mode),
            }
        }
    }
    Ok(attachments.into_values().collect())
}

/// Remove programs, links, maps and pins; return their descriptions.
///
/// # Errors
/// [`GuardError::NotLoaded`] when there is nothing; [`GuardError::Pin`] when something cannot be
/// removed.
pub fn unload(pin_dir: &Path) -> Result<Vec<String>, GuardError> {
    unload::unload(&Pins::new(pin_dir))
}

/// Do the same if no daemon uses the pins, on any socket; none can start meanwhile.
///
/// # Errors
/// As [`unload()`], and [`GuardError::InUse`].
pub fn unload_unused(pin_dir: &Path) -> Result<Vec<String>, GuardError> {
    let pins = Pins::new(pin_dir);
    if !pins.exist() {
        return Err(GuardError::NotLoaded(pin_dir.into()));
    }
    let _lock = pins.hold()?;
    unload::unload(&pins)
}
