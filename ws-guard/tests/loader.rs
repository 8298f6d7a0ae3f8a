//! Loading, attaching, pinning and taking over, on the real kernel. Each test has namespaces and a
//! pin directory of its own, and leaves nothing behind.
use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{HashMap, MapData, MapInfo, loaded_maps},
    programs::{
        SchedClassifier, TcAttachType, Xdp, XdpMode, links::FdLink, links::PinnedLink,
        loaded_programs,
    },
};
use ws_guard::guard::{
    AttachMode, Attachment, Guard, GuardError, InterfaceEvent, InterfaceWatcher, LoadOptions, Maps,
    Mode, TableSizes, pinned_attachments, unload,
};
use ws_guard_common::maps::{
    Address, Counter, Counters, Operation, Policy, Request, Rule, answer, name,
};
use ws_guard_testkit::netns::{Family, INTERFACE, Namespace, Pair, PairOptions};

const SIZES: TableSizes = TableSizes { flows: 4096, sources: 16384, pending: 1024, rules: 64 };
const PORT: u16 = 9999;

/// A pin directory, emptied when dropped.
struct PinDir(PathBuf);

impl PinDir {
    fn new() -> PinDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        PinDir(format!("/sys/fs/bpf/wsg-loader-{}-{number}", std::process::id()).into())
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { pin_dir: self.0.clone(), sizes: SIZES, kernel_debug_log: false }
    }

    fn load(&self) -> Result<Guard, GuardError> {
        Guard::load(&self.options())
    }

    fn link(&self, name: &str) -> Result<(u32, u32)> {
        let link = FdLink::from(PinnedLink::from_pin(self.0.join("links").join(name))?);
        let info = link.info()?;
        Ok((info.id(), info.program_id()))
    }

    fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("links")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = unload(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A namespace with a veth pair `v0`, `v1` in it.
fn veth(label: &str, mtu: u32) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    namespace.ip(&format!("link add v0 mtu {mtu} type veth peer name v1 mtu {mtu}"))?;
    namespace.ip("link set v0 up")?;
    namespace.ip("link set v1 up")?;
    Ok(namespace)
}

/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

fn attached(name: &str, ingress: Mode, egress: Mode) -> Attachment {
    Attachment { name: name.into(), ingress: Some(ingress), egress: Some(egress) }
}

fn attach_once(namespace: &Namespace, interface: &str, mode: AttachMode) -> Result<Attachment> {
    let pins = PinDir::new();
    namespace.run(|| {
        let mut guard = pins.load()?;
        let attachment = guard.attach(interface, mode)?;
        ensure!(guard.attachments() == [attachment.clone()]);
        ensure!(pinned_attachments(&pins.0)? == [attachment.clone()]);
        drop(guard);
        ensure!(pinned_attachments(&pins.0)? == [attachment.clone()], "the pins keep it");
        let removed = unload(&pins.0)?;
        ensure!(removed.len() > 10, "{removed:?}");
        ensure!(!pins.0.exists());
        ensure!(matches!(pinned_attachments(&pins.0), Err(GuardError::NotLoaded(_))));
        Ok(attachment)
    })?
}

#[test]
fn every_mode_attaches_and_unloads() -> Result<()> {
    needs_root!();
    let namespace = veth("modes", 1500)?;
    for (interface, mode, ingress, egress) in [
        ("v0", AttachMode::Auto, Mode::XdpNative, Mode::Tcx),
        ("v0", AttachMode::XdpNative, Mode::XdpNative, Mode::Tcx),
        ("v0", AttachMode::XdpGeneric, Mode::XdpGeneric, Mode::Tcx),
        ("v0", AttachMode::Tcx, Mode::Tcx, Mode::Tcx),
        ("v0", AttachMode::Clsact, Mode::Clsact, Mode::Clsact),
        ("lo", AttachMode::Auto, Mode::XdpGeneric, Mode::Tcx),
    ] {
        let attachment = attach_once(&namespace, interface, mode)
            .with_context(|| format!("{mode:?} on {interface}"))?;
        assert_eq!(attachment, attached(interface, ingress, egress), "{mode:?}");
    }
    Ok(())
}
