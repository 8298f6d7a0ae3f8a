//! The fleet: three servers behind nginx, a Redis, and clients behind a path with delay.
//!
//! ```text
//!   clients            middle              edge                     servers, one namespace each
//!   10.77.0.1 ..  ─── delay, loss ─── nginx 10.77.255.1:443 ─┬─ ws-guard run ─▶ serve 10.78.0.11:8080
//!                                     bridge 10.78.0.1/24    ├─ ws-guard run ─▶ serve 10.78.0.12:8080
//!                                                            └─ redis-server 10.78.0.2:6379
//! ```
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path as Folder, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use ws_guard_testkit::{
    netns::{Family, INTERFACE, Namespace},
    path::Path,
    process::Process,
    tools,
};

use crate::{
    guard::{Guard, Profile},
    setup,
};

/// Addresses of clients; more clients share them.
pub const ADDRESSES: u8 = 200;
/// How long a program may take to start.
const START: Duration = Duration::from_secs(60);
/// Size of the disk that a server's access log is on, and of the one that Redis writes to.
const DISK: &str = "8m";
const REDIS_DISK: &str = "2g";

/// Where clients connect to.
pub fn front() -> SocketAddr {
    (Family::V4.server(), 443).into()
}

const REDIS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// The port on which servers answer whether they are ready.
const METRICS: u16 = 9090;

/// Of the server of this number.
fn address(number: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 78, 0, 11 + number as u8), 8080).into()
}

/// One server, with its guard.
pub struct Node {
    pub server: Process,
    pub guard: Guard,
    /// On a small disk of its own.
    disk: Disk,
    /// How many seconds its clock is ahead.
    clock: PathBuf,
    namespace: Namespace,
}

/// A file system in memory, unmounted when dropped.
struct Disk(PathBuf);

pub struct Fleet {
    // In the order in which it is to end.
    pub nginx: Process,
    pub nodes: Vec<Node>,
    pub redis: Process,
    /// A disk in memory: a kill leaves it as any disk, and the machine's own may be slow.
    _redis_disk: Disk,
    pub redis_namespace: Namespace,
    pub path: Path,
    folder: PathBuf,
    faketime: PathBuf,
}

impl Fleet {
    /// Start everything; what it needs is kept in `folder`.
    pub fn start(folder: &Folder, servers: usize) -> Result<Fleet> {
        let faketime = setup::faketime().context("libfaketime is gone after its installation")?;
        let path = Path::new(ADDRESSES)?;
        let edge = &path.pair.server;
        edge.ip("link add br0 type bridge")?;
        edge.ip("addr add 10.78.0.1/24 dev br0")?;
        edge.ip("link set br0 up")?;
        let redis_namespace = joined(edge, "redis", &format!("{REDIS}/24"))?;
        let redis_disk = Disk::mount(folder.join("redis"), REDIS_DISK)?;
        let redis = start_redis(folder, &redis_namespace)?;
        write_settings(folder)?;
        let mut nodes = Vec::new();
        for number in 0..servers {
            nodes.push(Node::start(folder, &faketime, edge, number)?);
        }
        let nginx = start_nginx(folder, edge, servers)?;
        let folder = folder.to_owned();
        Ok(Fleet {
            nginx,
            nodes,
            redis,
            _redis_disk: redis_disk,
            redis_namespace,
            path,
            folder,
            faketime,
        })
    }

    /// The certificate that clients trust.
    pub fn certificate(folder: &Folder) -> PathBuf {
        folder.join("cert.pem")
    }

    /// Start a server that has ended.
    pub fn server_again(&mut self, number: usize) -> Result<()> {
        let Fleet { nodes, folder, faketime, .. } = self;
        let node = nodes.get_mut(number).context("no such server")?;
        node.server = start_server(folder, faketime, &node.namespace, &node.disk, number)?;
        Ok(())
    }

    pub fn redis_again(&mut self) -> Result<()> {
        self.redis = start_redis(&self.folder, &self.redis_namespace)?;
        Ok(())
    }

    /// End everything in order.
    ///
    /// # Errors
    /// When something had ended before by itself.
    pub fn stop(mut self) -> Result<()> {
        let (mut early, folder) = (Vec::new(), self.folder.clone());
        let mut end = |name: String, process: &mut Process| -> Result<()> {
            if let Some(status) = process.ended()? {
                let lines = process.lines();
                let last = lines[lines.len().saturating_sub(5)..].join("\n");
                early.push(format!("{name} had ended early ({status}):\n{last}"));
            }
            process.terminate()?;
            let file = folder.join(format!("{}.log", name.replace(' ', "-")));
            fs::write(&file, process.lines().join("\n")).with_context(|| file.display().to_string())
        };
        end("nginx".into(), &mut self.nginx)?;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            end(format!("server {number}"), &mut node.server)?;
        }
        end("Redis".into(), &mut self.redis)?;
        for node in self.nodes.drain(..) {
            node.guard.unload()?;
        }
        if early.is_empty() { Ok(()) } else { bail!("{}", early.join("\n")) }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // nginx would leave its worker behind; a stopped process would not hear SIGTERM.
        let _ = self.nginx.terminate();
        for node in &self.nodes {
            let _ = node.server.signal(Signal::SIGCONT);
        }
    }
}

impl Node {
    fn start(folder: &Folder, faketime: &Folder, edge: &Namespace, number: usize) -> Result<Node> {
        let at = address(number);
        let namespace = joined(edge, &format!("server{number}"), &format!("{}/24", at.ip()))?;
        let guard = format!(
            "--interface {INTERFACE} --port {} --action defuse --trusted-proxy private \
             --max-ping-rate 30 --window-seconds 10",
            at.port()
        );
        let guard = Guard::start(Profile::Release, &namespace, &guard)?;
        let disk = Disk::mount(folder.join(format!("disk-{number}")), DISK)?;
        let clock = folder.join(format!("clock-{number}"));
        fs::write(&clock, "+0").context("writing the clock of a server")?;
        let server = start_server(folder, faketime, &namespace, &disk, number)?;
        Ok(Node { server, guard, disk, clock, namespace })
    }

    /// Let the server's clock be so far ahead, within a second.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // Renamed into place: it is never read half-written.
        let new = self.clock.with_extension("new");
        fs::write(&new, format!("{seconds:+}"))?;
        fs::rename(&new, &self.clock).context("setting the clock of a server")
    }

    /// Fill the disk of the access log, or make room again.
    pub fn fill_disk(&self, full: bool) -> Result<()> {
        let filler = self.disk.0.join("filler");
        if !full {
            // The log has what there was room for; the file goes on where it was.
            fs::remove_file(&filler).context("making room on a server's disk")?;
            return Ok(());
        }
        let mut file = fs::File::create(&filler).context("filling a server's disk")?;
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        Ok(())
    }
}

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Result<Disk> {
        fs::create_dir_all(&at).with_context(|| at.display().to_string())?;
        let options = format!("size={size}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options.as_str()))
            .with_context(|| format!("mounting a disk in memory at {}", at.display()))?;
        Ok(Disk(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while a log on it is open.
        if let Err(error) = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("could not unmount {}: {error}", self.0.display());
        }
    }
}

/// A namespace on the edge's bridge.
fn joined(edge: &Namespace, label: &str, address: &str) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    let peer = format!("type veth peer name {INTERFACE} netns {}", namespace.name());
    edge.ip(&format!("link add {label} {peer}"))?;
    edge.ip(&format!("link set {label} master br0 up"))?;
    namespace.ip(&format!("addr add {address} dev {INTERFACE}"))?;
    namespace.ip(&format!("link set {INTERFACE} up"))?;
    namespace.ip("route add default via 10.78.0.1")?;
    Ok(namespace)
}

/// Redis that has on disk whatever it has acknowledged.
fn start_redis(folder: &Folder, namespace: &Namespace) -> Result<Process> {
    let place = folder.join("redis");
    // The name that it is called by decides what the program is.
    let program = place.join("redis-server");
    if !program.exists() {
        let installed = setup::program("redis-check-rdb")
            .context("Redis is missing: `cargo xtask setup` installs it")?;
        symlink(installed, &program)?;
    }
    let mut command = namespace.command(&program);
    command.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    command.arg("--dir").arg(&place);
    let redis = Process::spawn("redis-server", command)?;
    redis.wait_for(START, |line| line.contains("Ready to accept").then_some(()))?;
    Ok(redis)
}

/// What servers read, and the certificate that nginx shows.
fn write_settings(folder: &Folder) -> Result<()> {
    let topics = "[[server.topic]]\nmatch = \"chaos:*\"\nhistory = 1000\n";
    fs::write(folder.join("topics.toml"), topics)?;
    let secret: String = std::iter::repeat_with(fastrand::alphanumeric).take(48).collect();
    fs::write(folder.join("secret"), secret)?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::write(Fleet::certificate(folder), made.cert.pem())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}

fn start_server(
    folder: &Folder,
    faketime: &Folder,
    namespace: &Namespace,
    disk: &Disk,
    number: usize,
) -> Result<Process> {
    let mut command: Command = namespace.command(Profile::Release.program());
    command.arg("--control-socket").arg(folder.join(format!("server-{number}.sock")));
    command.args(["serve", "--handler", "topic", "--trusted-proxy", "private", "--shards", "1"]);
    command.arg("--listen").arg(address(number).to_string());
    command.arg("--metrics-listen").arg(format!("{}:{METRICS}", address(number).ip()));
    command.arg("--bus").arg(format!("redis://{REDIS}:6379"));
    command.arg("--bus-server").arg(format!("server-{number}"));
    command.arg("--config").arg(folder.join("topics.toml"));
    command.arg("--resume-secret").arg(folder.join("secret"));
    command.arg("--access-log").arg(disk.0.join("access.log"));
    // A busy machine makes it slow, which is not the fault that is looked for.
    command.args(["--stall-refuse", "5s", "--stall-shed", "30s", "--shutdown-spread", "1s"]);
    command.env("LD_PRELOAD", faketime);
    command.env("FAKETIME_TIMESTAMP_FILE", folder.join(format!("clock-{number}")));
    command.envs([("FAKETIME_CACHE_DURATION", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    command.env("FAKETIME_DONT_RESET", "1");
    let server = Process::spawn(&format!("server {number}"), command)?;
    server.wait_for(START, |line| line.contains("serving WebSocket").then_some(()))?;
    Ok(server)
}

fn start_nginx(folder: &Folder, edge: &Namespace, servers: usize) -> Result<Process> {
    let place = folder.join("nginx");
    fs::create_dir_all(&place)?;
    let file = place.join("nginx.conf");
    fs::write(&file, nginx_conf(folder, servers))?;
    let mut command = edge.command(tools::nginx());
    command.arg("-p").arg(&place).arg("-c").arg(&file).args(["-e", "stderr"]);
    let nginx = Process::spawn("nginx", command)?;
    let deadline = Instant::now() + START;
    while !place.join("nginx.pid").exists() {
        if Instant::now() > deadline {
            bail!("nginx does not start:\n{}", nginx.lines().join("\n"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(nginx)
}

/// A terminator of TLS that spreads clients over the servers that are ready, in turn.
fn nginx_conf(folder: &Folder, servers: usize) -> String {
    let fleet: String = (0..servers)
        .map(|number| {
            let at = address(number);
            format!("    {{ \"{}\", {}, {METRICS} }},\n", at.ip(), at.port())
        })
        .collect();
    let [modules, path] = tools::lua_in_nginx();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {name};\n"))
        .concat();
    format!(
        "{modules}daemon off;
pid nginx.pid;
error_log stderr error;
user root;
worker_processes 1;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
{temporary}  {path}  init_by_lua_block {{ ready = require \"ready\" }}
  init_worker_by_lua_block {{ ready.watch {{
{fleet}  }} }}
  upstream fleet {{
    server 0.0.0.1;
    balancer_by_lua_block {{ ready.pick() }}
  }}
  server {{
    listen {} ssl backlog=4096;
    ssl_certificate {};
    ssl_certificate_key {};
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass http://fleet;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_connect_timeout 500ms;
      proxy_next_upstream error timeout http_503;
      # Clients have their heartbeats answered every 4 s: a silent server is none.
      proxy_read_timeout 8s;
    }}
  }}
}}
",
        front(),
        Fleet::certificate(folder).display(),
        folder.join("key.pem").display()
    )
}
