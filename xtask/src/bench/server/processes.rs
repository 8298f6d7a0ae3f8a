//! The servers and the load, as processes.
use std::{net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use ws_guard_testkit::{process::Process, tools};

use crate::step;

/// How long anything may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    WsGuard,
    TokioTungstenite,
    Fastwebsockets,
    TokioWebsockets,
    SockudoWs,
}

impl Kind {
    /// Ours first.
    pub const ALL: [Kind; 5] = [
        Kind::WsGuard,
        Kind::TokioTungstenite,
        Kind::Fastwebsockets,
        Kind::TokioWebsockets,
        Kind::SockudoWs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::WsGuard => "ws-guard",
            Kind::TokioTungstenite => "tokio-tungstenite",
            Kind::Fastwebsockets => "fastwebsockets",
            Kind::TokioWebsockets => "tokio-websockets",
            Kind::SockudoWs => "sockudo-ws",
        }
    }
}

/// A server that listens.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
}

impl Server {
    /// One on a free port, with one thread.
    pub fn start(kind: Kind) -> Result<Server> {
        match kind {
            Kind::WsGuard => Server::ours(&[]),
            kind => Server::spawn(kind.name(), Command::new(program(kind.name()))),
        }
    }

    /// The companion server, with these flags too.
    pub fn ours(more: &[&str]) -> Result<Server> {
        let mut command = Command::new(tools::target().join("release/ws-guard"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1"]).args(more);
        // The load shares the machine with it: what is late is late for that.
        command.args(["--access-log", "/dev/null", "--stall-refuse", "1h", "--stall-shed", "1h"]);
        command.args(["--max-connections", "20000", "--max-connections-per-source", "20000"]);
        Server::spawn("ws-guard", command)
    }

    /// TLS without WebSocket.
    pub fn bare_tls(certificate: &Certificate) -> Result<Server> {
        let mut command = Command::new(program("rustls"));
        command.arg(&certificate.chain).arg(&certificate.key);
        Server::spawn("rustls", command)
    }

    fn spawn(name: &str, command: Command) -> Result<Server> {
        let process = Process::spawn(name, command)?;
        let address = process.wait_for(PATIENCE, |line| {
            let (_, address) = line.rsplit_once(" on ")?;
            line.contains("listening on")
                .then_some(address)
                .or_else(|| line.contains("serving WebSocket connections").then_some(address))?
                .trim()
                .parse()
                .ok()
        })?;
        Ok(Server { process, address })
    }
}

/// A certificate for localhost, in files.
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
    _directory: tempfile::TempDir,
}

impl Certificate {
    pub fn make() -> Result<Certificate> {
        let directory = tempfile::tempdir()?;
        let made = Command::new(program("load")).arg("certificate").arg(directory.path()).status();
        anyhow::ensure!(made?.success(), "no certificate was made");
        Ok(Certificate {
            chain: directory.path().join("certificate.pem"),
            key: directory.path().join("key.pem"),
            _directory: directory,
        })
    }
}

/// The load generator with these arguments.
pub fn load(arguments: &[String]) -> Result<Process> {
    let mut command = Command::new(program("load"));
    command.args(arguments);
    Process::spawn("load", command)
}

/// Where cargo puts the benchmark's own programs.
fn target() -> PathBuf {
    tools::target().join("bench-server")
}

fn program(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Build all of it, optimised.
pub fn build() -> Result<()> {
    let cargo = || Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let mut ours = cargo();
    ours.args(["build", "--release", "--package", "ws-guard"]).current_dir(tools::workspace());
    step::run("building ws-guard", ours)?;
    let mut others = cargo();
    others.args(["build", "--release", "--target-dir"]).arg(target());
    others.current_dir(tools::workspace().join("bench"));
    step::run("building the other servers", others).context("see bench/Cargo.toml")
}
