//! Loading, attaching, pinning and taking over, on the real kernel.
//! Each test has separate namespaces and a separate pin directory, and leaves nothing behind but
//! the mounted BPF file system, where that was missing.
//!
//! `WS_GUARD_OBJECT=FILE` runs all of it against another build of the kernel programs.
/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

/// Skip, loudly, where the kernel has no TCX.
macro_rules! needs_tcx {
    () => {
        if let Some(reason) = ws_guard_testkit::no_tcx_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod events;
mod interfaces;
mod maps;
mod memory;
mod migration;
mod modes;
mod pins;
mod privileges;
mod takeover;

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use ws_guard::guard::{
    AttachMode, Attachment, Guard, GuardError, LoadOptions, Maps, Mode, Role, TableSizes, unload,
};
use ws_guard_common::maps::{Counter, Tunnels};
use ws_guard_testkit::{netns::Namespace, no_tcx_reason};

/// Sizes of small tables, soon full.
const SIZES: TableSizes =
    TableSizes { flows: 4096, sources: 16384, pending: 1024, rules: 64, opening: 4096 };
/// Protected port of these tests; without a listener.
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
        LoadOptions {
            pin_dir: self.0.clone(),
            sizes: SIZES,
            tunnels: Tunnels::default(),
            kernel_debug_log: false,
        }
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

/// Make a namespace with a veth pair `v0`, `v1` in it.
fn veth(label: &str, mtu: u32) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    namespace.ip(&format!("link add v0 mtu {mtu} type veth peer name v1 mtu {mtu}"))?;
    namespace.ip("link set v0 up")?;
    namespace.ip("link set v1 up")?;
    Ok(namespace)
}

/// Return the TC hook that the guard prefers here: TCX, or else clsact.
fn preferred_tc() -> Mode {
    if no_tcx_reason().is_none() { Mode::Tcx } else { Mode::Clsact }
}

/// Return the ways to attach that this kernel has, one of each kind.
fn attach_modes() -> Vec<AttachMode> {
    let mut modes = vec![AttachMode::Auto, AttachMode::Clsact];
    if no_tcx_reason().is_none() {
        modes.push(AttachMode::Tcx);
    }
    modes
}

fn attached(name: &str, ingress: Mode, egress: Mode) -> Attachment {
    let (ingress, egress) = (Some(ingress), Some(egress));
    Attachment { name: name.into(), role: Role::Uplink, ingress, egress }
}

fn counter(maps: &Maps, counter: Counter) -> Result<u64> {
    Ok(maps.counters()?.events[counter as usize])
}

/// Wait until `done` returns true.
/// A link or program goes a moment after its last reference.
fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    while !done() {
        ensure!(Instant::now() < until, "{what}: not within 5 s");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
