//! The measured programs, and the load generator.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;
use ws_guard_testkit::{process::Process, tools};

use crate::{cpus, step};

/// Time limit for a program to report that it is ready.
const START: Duration = Duration::from_secs(10);

/// Server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    WsGuard,
    TokioTungstenite,
    Fastwebsockets,
    TokioWebsockets,
    SockudoWs,
    /// TLS connections without anything on top.
    Rustls,
}

impl Who {
    /// Servers that echo.
    pub const SERVERS: [Who; 5] = [
        Who::WsGuard,
        Who::TokioTungstenite,
        Who::Fastwebsockets,
        Who::TokioWebsockets,
        Who::SockudoWs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Who::WsGuard => "ws-guard",
            Who::TokioTungstenite => "tokio-tungstenite",
            Who::Fastwebsockets => "fastwebsockets",
            Who::TokioWebsockets => "tokio-websockets",
            Who::SockudoWs => "sockudo-ws",
            Who::Rustls => "rustls",
        }
    }

    /// Return its name in the peers' program.
    fn peer(self) -> &'static str {
        match self {
            Who::WsGuard => "",
            Who::TokioTungstenite => "tungstenite",
            Who::Fastwebsockets => "fastwebsockets",
            Who::TokioWebsockets => "tokio-websockets",
            Who::SockudoWs => "sockudo",
            Who::Rustls => "rustls",
        }
    }
}

/// Paths of the built programs, and the CPUs they run on.
pub struct Programs {
    guard: PathBuf,
    peer: PathBuf,
    load: PathBuf,
    /// CPUs of the server, and of the load generator.
    cpus: [usize; 2],
    pub certificate: Certificate,
}

/// Certificate for localhost, made for this run.
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    _folder: tempfile::TempDir,
}

/// Return all programs, built anew or as they are.
pub fn programs(build: bool) -> Result<Programs> {
    let folder = tools::target().join("bench-server");
    if build {
        build_all(&folder)?;
    }
    Ok(Programs {
        guard: tools::target().join("release/ws-guard"),
        peer: folder.join("release/peer"),
        load: folder.join("release/load"),
        cpus: cpus::ends()?,
        certificate: Certificate::new()?,
    })
}

/// Build optimised programs, the others below `folder`.
fn build_all(folder: &Path) -> Result<()> {
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--release", "--locked"]);
        cargo
    };
    let mut peers = cargo();
    peers.current_dir(tools::workspace().join("bench")).env("CARGO_TARGET_DIR", folder);
    step::run("building the other servers and the load generator", peers)?;
    let mut guard = cargo();
    guard.args(["--package", "ws-guard"]).current_dir(tools::workspace());
    step::run("building ws-guard", guard)
}

impl Certificate {
    fn new() -> Result<Certificate> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let folder = tempfile::tempdir()?;
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        std::fs::write(&cert, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Certificate { cert, key, _folder: folder })
    }
}

/// Detect readiness: the peers listen, ws-guard serves, and sockudo listens in its own words.
fn is_there(line: &str) -> Option<()> {
    let said = ["serving WebSocket connections", "http server listening"];
    (line == "listening" || said.iter().any(|said| line.contains(said))).then_some(())
}

/// A listening server.
pub struct Serving {
    pub process: Process,
    pub port: u16,
}

impl Programs {
    /// Start a server on one thread.
    /// `tls` matters only for ws-guard: rustls always uses TLS.
    pub fn serve(&self, who: Who, tls: bool, more: &[&str]) -> Result<Serving> {
        self.serve_with(who.name(), |port| self.command(who, port, tls, more))
    }

    /// Start a program that listens at its given port.
    pub fn serve_with(&self, name: &str, command: impl FnOnce(u16) -> Command) -> Result<Serving> {
        let port = free_port()?;
        let process = cpus::start_on(self.cpus[0], || Process::spawn(name, command(port)))?;
        process.wait_for(START, is_there)?;
        Ok(Serving { process, port })
    }

    fn command(&self, who: Who, port: u16, tls: bool, more: &[&str]) -> Command {
        let mut command = match who {
            Who::WsGuard => self.ws_guard(port),
            _ => {
                let mut command = Command::new(&self.peer);
                command.args([who.peer(), &port.to_string()]);
                command
            }
        };
        if tls {
            let flags = if who == Who::WsGuard {
                ["--tls-certificate", "--tls-key"]
            } else {
                ["--cert", "--key"]
            };
            command.arg(flags[0]).arg(&self.certificate.cert);
            command.arg(flags[1]).arg(&self.certificate.key);
        }
        command.args(more);
        command
    }

    fn ws_guard(&self, port: u16) -> Command {
        let mut command = Command::new(&self.guard);
        command.args(["serve", "--shards", "1", "--listen", &format!("127.0.0.1:{port}")]);
        // A busy machine must make it slow, like the others, and not careful.
        command.args(["--access-log", "/dev/null", "--stall-refuse", "1h", "--stall-shed", "1h"]);
        command
    }

    /// Start the load generator.
    pub fn load(&self, args: &[&str]) -> Result<Process> {
        let mut command = Command::new(&self.load);
        command.args(args);
        cpus::start_on(self.cpus[1], || Process::spawn("the load generator", command))
    }
}

/// Return a free port.
fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Return the path of a file as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
