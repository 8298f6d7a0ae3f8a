//! Echo servers on third-party WebSocket libraries.
//!
//! The one on gorilla/websocket pauses where a ping asks for it, and reports the duration by its
//! own clock. The one on npm's `ws` also returns the body of ordinary requests, and extends the
//! head of its
//! 101 where `/?pad=N` asks for it.
//!
//! Each echoes text and binary messages and answers pings as its library does by itself. Each
//! prints JSON lines: `{"event":"listening","port":N}`, `connected` with `peer`, `closed` with
//! `peer` and the counts of the connection, `{"messages":N,"pings":N,"pongs":N}`, and on SIGTERM
//! `{"event":"totals","connections":N,"messages":N,"pings":N,"pongs":N}`.
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{netns::Namespace, process::Process, tools};

/// Maximum time for a server to listen.
const START: Duration = Duration::from_secs(20);

/// WebSocket library of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    TokioTungstenite,
    /// Python `websockets`.
    Python,
    /// npm `ws`.
    Ws,
    /// Go `gorilla/websocket`.
    Gorilla,
}

impl Library {
    pub const ALL: [Library; 4] =
        [Library::TokioTungstenite, Library::Python, Library::Ws, Library::Gorilla];

    pub fn name(self) -> &'static str {
        match self {
            Library::TokioTungstenite => "tokio-tungstenite",
            Library::Python => "python",
            Library::Ws => "ws",
            Library::Gorilla => "gorilla",
        }
    }

    fn command(self, namespace: &Namespace, limit: Option<u64>) -> Result<Command> {
        let (program, script) = match self {
            Library::TokioTungstenite => (tungstenite_echo()?, None),
            Library::Python => (tools::python(), Some("echo.py")),
            Library::Ws => ("node".into(), Some("echo.cjs")),
            Library::Gorilla => (tools::gorilla_echo(), None),
        };
        if self != Library::Ws {
            installed(&program, self)?;
        } else {
            installed(&tools::node_modules().join("ws"), self)?;
        }
        let mut command = match limit {
            // prlimit execs: the process id stays.
            Some(bytes) => {
                let mut command = namespace.command("prlimit");
                command.arg(format!("--data={bytes}")).arg("--").arg(program);
                command
            }
            None => namespace.command(program),
        };
        command.env("NODE_PATH", tools::node_modules());
        command.args(script.map(|name| tools::foreign().join(name)));
        Ok(command)
    }
}

impl std::str::FromStr for Library {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Library> {
        Library::ALL.into_iter().find(|library| library.name() == name).with_context(|| {
            let names = Library::ALL.map(Library::name).join(", ");
            format!("no server is called {name:?}: choose one of {names}")
        })
    }
}

/// Totals of a server, printed when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Totals {
    pub connections: u64,
    pub messages: u64,
    /// Pings received by its library.
    pub pings: u64,
    /// Solicited and unsolicited pongs received by its library.
    pub pongs: u64,
}

/// Counts of one connection, printed when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Closed {
    pub peer: SocketAddr,
    /// Error from its library, or `None` for an end in order.
    pub why: Option<String>,
    pub messages: u64,
    /// Pings received and answered by its library.
    pub pings: u64,
    pub pongs: u64,
}

/// Running echo server.
pub struct Server {
    process: Process,
    port: u16,
    /// Number of ended connections returned, by peer: its port may be used again.
    returned: Mutex<HashMap<SocketAddr, usize>>,
}

impl Server {
    /// Start a server on all addresses of `namespace`, both families, and wait for it.
    /// It listens at `port`. `limit` bounds the bytes of its data segment (RLIMIT_DATA).
    pub fn start(
        namespace: &Namespace,
        library: Library,
        port: u16,
        limit: Option<u64>,
    ) -> Result<Server> {
        Server::spawn(library.command(namespace, limit)?, library, port)
    }

    /// Start with permessage-deflate for clients that offer it.
    /// Only Python `websockets` and npm `ws` support that.
    pub fn start_deflating(namespace: &Namespace, library: Library, port: u16) -> Result<Server> {
        ensure!(matches!(library, Library::Python | Library::Ws), "{library:?} does not deflate");
        let mut command = library.command(namespace, None)?;
        command.env("ECHO_DEFLATE", "1");
        Server::spawn(command, library, port)
    }

    fn spawn(mut command: Command, library: Library, port: u16) -> Result<Server> {
        command.arg(port.to_string());
        let process = Process::spawn(library.name(), command)?;
        process.wait_for(START, |line| field(line, "listening"))?;
        Ok(Server { process, port, returned: Mutex::default() })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.port)
    }

    /// Wait for the ends of `count` further connections of `peer`; return their counts.
    /// Those returned before are left out.
    pub fn closed(&self, peer: SocketAddr, count: usize, timeout: Duration) -> Result<Vec<Closed>> {
        let returned = || self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        let before = returned().get(&peer).copied().unwrap_or(0);
        let (mut seen, mut found) = (0, Vec::new());
        self.process.wait_for(timeout, |line| {
            let closed: Closed = serde_json::from_value(field(line, "closed")?).ok()?;
            // A socket of both families shows IPv4 addresses mapped.
            let canonical = SocketAddr::new(closed.peer.ip().to_canonical(), closed.peer.port());
            if canonical == peer {
                seen += 1;
                found.extend((seen > before).then_some(closed));
            }
            (found.len() >= count).then_some(())
        })?;
        returned().insert(peer, before + found.len());
        Ok(found)
    }

    /// Wait for this number of pauses of the gorilla server; return the last duration.
    /// It is in microseconds, by the server's own clock.
    pub fn paused(&self, count: usize, timeout: Duration) -> Result<u64> {
        let mut seen = 0;
        self.process.wait_for(timeout, |line| {
            let paused = field(line, "paused")?;
            seen += 1;
            if seen == count { paused["us"].as_u64() } else { None }
        })
    }

    /// Send SIGTERM, and return the server's totals.
    pub fn stop(mut self) -> Result<Totals> {
        let status = self.process.terminate()?;
        let lines = self.process.lines();
        let Some(totals) = lines.iter().rev().find_map(|line| field(line, "totals")) else {
            bail!("the server ended ({status}) without its totals:\n{}", lines.join("\n"));
        };
        serde_json::from_value(totals).context("reading the server's totals")
    }
}

/// Parse the line, if it is the event called `name`.
fn field(line: &str, name: &str) -> Option<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    (value["event"] == name).then_some(value)
}

fn installed(path: &Path, library: Library) -> Result<()> {
    ensure!(
        path.exists(),
        "the server on {} is not installed ({} is missing): run `cargo xtask setup`",
        library.name(),
        path.display()
    );
    Ok(())
}

/// Return the program of this crate with the server on tokio-tungstenite.
/// It is always optimised, as its users run it. Cargo checks once a process whether it is up to
/// date; where there is no cargo, as in a virtual machine, it has to exist.
fn tungstenite_echo() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let path = tools::tungstenite_echo();
    let built = BUILT.get_or_init(|| {
        let mut cargo = tools::build_tungstenite_echo();
        cargo.arg("--quiet");
        match cargo.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(format!("{cargo:?} failed")),
            Err(_) if path.exists() => Ok(()),
            Err(error) => Err(format!("running {cargo:?}: {error}")),
        }
    });
    built.clone().map_err(anyhow::Error::msg)?;
    ensure!(path.exists(), "{} is missing", path.display());
    Ok(path)
}
