//! Network namespaces with a veth pair between them, removed when dropped, also on a panic.
//!
//! ```text
//!   client namespace                      server namespace
//!   veth0  10.77.0.1 .. 10.77.0.N   ───   veth0  10.77.255.1
//!          fd77:0:0:0::1 .. fd77:0:0:N-1::1      fd77:0:0:ffff::1
//! ```
//! Each client address is a source of its own for the guard, IPv6 ones by their /64.
use std::{
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Prefix of the namespaces' names; the owner's process id and a number follow.
const PREFIX: &str = "wsg";
/// Folder in which `ip netns` keeps its handles.
const HANDLES: &str = "/run/netns";
/// Single interface of each namespace in addition to `lo`.
pub const INTERFACE: &str = "veth0";

/// IPv4 or IPv6, for tests that run with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// Return the address of the server in a [`Pair`].
    pub fn server(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 77, 255, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0xffff, 0, 0, 0, 1).into(),
        }
    }

    /// Return the address of client number `n` of a [`Pair`], from 0 and below 254.
    pub fn client(self, n: u8) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 77, 0, n + 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, n.into(), 0, 0, 0, 1).into(),
        }
    }
}

/// Network namespace, removed when dropped if it was created here.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    borrowed: bool,
}

impl Namespace {
    /// Create a namespace with a unique name and `lo` up.
    pub fn new(label: &str) -> Result<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}-{label}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let namespace = Namespace { name, borrowed: false };
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Refer to a namespace of this name that something else creates and removes.
    pub fn borrow(name: &str) -> Namespace {
        Namespace { name: name.to_owned(), borrowed: true }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Return the handle that `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        Path::new(HANDLES).join(&self.name)
    }

    /// Run `f` on a thread inside the namespace and wait for it.
    ///
    /// A socket belongs to the namespace in which it was created for good, so only its creation has
    /// to happen here. A panic in `f` continues in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let handle = File::open(self.path())
            .with_context(|| format!("opening the namespace {}", self.name))?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering the namespace {}", self.name))?;
                Ok(f())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Build a command that runs inside the namespace.
    /// `nsenter` changes the network namespace alone, where `ip netns exec` would also mount a
    /// fresh /sys and so hide bpffs; it execs the program, which therefore has the process id of
    /// the child.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Run `ip` with these arguments, inside the namespace.
    pub fn ip(&self, words: &str) -> Result<()> {
        let mut args = vec!["-netns", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args)
    }

    /// Run many lines of such arguments in one `ip`, for speed.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]).stdin(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().context("running ip")?;
        child.stdin.take().context("no standard input")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed: {}", said.trim());
        Ok(())
    }

    /// Write a setting under /proc/sys, with `/` between the parts of its name.
    /// Those under net/ belong to the namespace.
    pub fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(setting);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("writing {value} to {}", path.display()))
    }

    /// Switch segmentation, receive and checksum offloads of an interface.
    /// Off makes the checksums in packets real: between local namespaces they are never computed
    /// otherwise.
    pub fn offloads(&self, interface: &str, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let mut command = self.command("ethtool");
        command.args(["-K", interface]);
        for feature in ["tx", "tso", "gso", "gro"] {
            command.args([feature, state]);
        }
        finish(command)
    }

    /// Let one CPU process all arrivals at an interface (receive packet steering).
    /// A NIC's queue does so for a connection. Otherwise each CPU that sends into a veth pair also
    /// receives, and segments of one connection overtake each other.
    pub fn one_cpu(&self, interface: &str) -> Result<()> {
        // This one mounts the namespace's own /sys.
        let mut command = Command::new("ip");
        let write = format!("echo 1 > /sys/class/net/{interface}/queues/rx-0/rps_cpus");
        command.args(["netns", "exec", &self.name, "sh", "-c", &write]);
        finish(command)
    }

    /// Return the MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        // sysfs shows the namespace of the process that mounted it, so query `ip`.
        let output = Command::new("ip")
            .args(["-netns", &self.name, "-json", "link", "show", "dev", interface])
            .output()
            .context("running ip")?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no interface {interface} in {}", self.name))?;
        let text = links[0]["address"].as_str().context("ip shows no MAC address")?;
        let mut mac = [0; 6];
        for (byte, hex) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(hex, 16)
                .with_context(|| format!("{text} is not a MAC address"))?;
        }
        Ok(mac)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.borrowed {
            return;
        }
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("could not remove the namespace {}: {error:#}", self.name);
        }
    }
}

/// Remove namespaces left behind by killed processes, and return their names.
/// Those of running processes are left alone.
pub fn remove_stale() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(entries) = std::fs::read_dir(HANDLES) else { return Ok(removed) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        if parts.next() != Some(PREFIX) {
            continue;
        }
        let Some(owner) = parts.next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(owner.to_string()).exists() {
            run("ip", &["netns", "del", &name])?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Options of a [`Pair`].
#[derive(Clone, Copy, Debug)]
pub struct PairOptions {
    /// Number of client addresses of each family, from 1 and below 254.
    pub clients: u8,
    /// MTU in bytes, on both ends.
    pub mtu: u32,
    /// Offloads on both ends: see [`Namespace::offloads`].
    pub offloads: bool,
}

impl Default for PairOptions {
    fn default() -> PairOptions {
        PairOptions { clients: 2, mtu: 1500, offloads: true }
    }
}

/// Client and server namespace with a veth pair between them, named [`INTERFACE`].
#[derive(Debug)]
pub struct Pair {
    pub client: Namespace,
    pub server: Namespace,
}

impl Pair {
    pub fn new(options: PairOptions) -> Result<Pair> {
        ensure!(
            (1..254).contains(&options.clients),
            "{} client addresses: between 1 and 253 are possible",
            options.clients
        );
        let pair = Pair { client: Namespace::new("client")?, server: Namespace::new("server")? };
        pair.connect(options)?;
        Ok(pair)
    }

    /// Create the veth pair, with its addresses; after a deletion this can be repeated.
    pub fn connect(&self, options: PairOptions) -> Result<()> {
        self.make_veth(options.mtu)?;
        self.configure(options)
    }

    /// Assign addresses to both ends, which exist already.
    pub(crate) fn configure(&self, options: PairOptions) -> Result<()> {
        for family in Family::BOTH {
            self.server.add_address(family.server(), true)?;
            for n in 0..options.clients {
                self.client.add_address(family.client(n), n == 0)?;
            }
        }
        for namespace in [&self.client, &self.server] {
            // Each write of a client shall be a segment of its own.
            namespace.sysctl("net/ipv4/tcp_autocorking", "0")?;
            namespace.ip(&format!("link set {INTERFACE} up"))?;
            if !options.offloads {
                namespace.offloads(INTERFACE, false)?;
            }
        }
        Ok(())
    }

    fn make_veth(&self, mtu: u32) -> Result<()> {
        let (client, server, mtu) = (self.client.name(), self.server.name(), mtu.to_string());
        let mut args = vec!["link", "add", INTERFACE, "mtu", &mtu, "netns", client];
        args.extend(["type", "veth", "peer", "name", INTERFACE, "mtu", &mtu, "netns", server]);
        run("ip", &args)
    }
}

impl Namespace {
    /// Add an address; without a bind, the one `preferred` address is the source.
    fn add_address(&self, address: IpAddr, preferred: bool) -> Result<()> {
        // Among IPv4 addresses the first one is preferred; other IPv6 addresses must be deprecated
        // (RFC 6724, 5, rule 3).
        let lifetime = if preferred { "" } else { "preferred_lft 0" };
        match address {
            IpAddr::V4(v4) => self.ip(&format!("addr add {v4}/16 dev {INTERFACE}")),
            // Without duplicate address detection, or the address is unusable for a second.
            IpAddr::V6(v6) => {
                self.ip(&format!("addr add {v6}/48 dev {INTERFACE} nodad {lifetime}"))
            }
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    finish(command)
}

fn finish(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| {
        format!("running {:?}: install it with `cargo xtask setup`", command.get_program())
    })?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
