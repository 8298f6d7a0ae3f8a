//! Clients, proxies, a server, and the guard on the server's side.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use serde::Deserialize;
use ws_guard_testkit::{
    edge::{self, Edge},
    netns::Family,
    process::Process,
    proxies::{Front, Proxy},
    servers::{Library, Server},
};

use crate::process::Guard;

/// Port of the server.
pub const PORT: u16 = 9001;
/// Port of the proxy.
const FRONT_PORT: u16 = 8080;
/// Time limit for the companion server to listen.
const START: Duration = Duration::from_secs(20);

/// Kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    Library(Library),
    /// `ws-guard serve`, which trusts the proxies.
    Companion,
    /// The same, configured for the PROXY protocol.
    CompanionBehindProxyProtocol,
}

impl Serving {
    /// Servers that speak HTTP from the first byte on.
    pub const HTTP: [Serving; 4] = [
        Serving::Library(Library::Python),
        Serving::Library(Library::Ws),
        Serving::Library(Library::Gorilla),
        Serving::Companion,
    ];
}

/// Position of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// At the interface of the server's pod.
    Pod,
    /// At the node's uplink.
    Uplink,
}

impl Role {
    pub const BOTH: [Role; 2] = [Role::Pod, Role::Uplink];

    fn interfaces(self) -> [&'static str; 2] {
        match self {
            Role::Pod => ["--pod-interface", "cali*"],
            Role::Uplink => ["--interface", "veth0"],
        }
    }
}

/// A server of either kind; both are ended when dropped.
enum Running {
    Library(Server),
    Companion(Process),
}

impl Running {
    fn start(edge: &Edge, serving: Serving) -> Result<Running> {
        let namespace = &edge.pod().namespace;
        let companion = match serving {
            Serving::Library(library) => {
                return Ok(Running::Library(Server::start(namespace, library, PORT, None)?));
            }
            Serving::Companion => Running::companion(edge, &[]),
            Serving::CompanionBehindProxyProtocol => {
                Running::companion(edge, &["--proxy-protocol"])
            }
        };
        companion.map(Running::Companion)
    }

    /// Start it without a limit on answers: limiting is the guard's work here.
    fn companion(edge: &Edge, more: &[&str]) -> Result<Process> {
        let mut command = edge.pod().namespace.command(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(["serve", "--max-ping-rate=0", "--access-log=/dev/null", "--shards=1"]);
        command.args(["--stall-refuse=1h", "--stall-shed=1h"]).args(more);
        command.args(["--trusted-proxy=10.77.0.0/16", "--trusted-proxy=fd77::/32"]);
        command.arg(format!("--listen=[::]:{PORT}"));
        let process = Process::spawn("ws-guard serve", command)?;
        process.wait_for(START, |line| {
            line.contains("serving WebSocket connections on ").then_some(())
        })?;
        Ok(process)
    }

    /// End it, and check that it had not ended before.
    fn stop(self) -> Result<()> {
        match self {
            Running::Library(server) => server.stop().map(drop),
            Running::Companion(mut process) => {
                let early = process.ended()?;
                ensure!(early.is_none(), "the server ended early: {}", process.lines().join("\n"));
                process.terminate().map(drop)
            }
        }
    }
}

/// A row of `flows -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flow {
    pub client: String,
    pub source: String,
    pub identity: String,
    pub state: String,
    pub frames_in: u64,
    pub pings_in: u64,
    pub pongs_out: u64,
    pub defused: u64,
    pub violations: u64,
}

/// A row of `sources -o json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Source {
    pub source: String,
    pub state: String,
    pub connections: u64,
    pub defused_total: u64,
    pub dropped_total: u64,
}

/// Everything that runs.
pub struct Stage {
    // Dropped in this order: the guard is unloaded in a namespace that still exists.
    pub guard: Guard,
    proxies: Vec<Proxy>,
    server: Running,
    pub edge: Edge,
    family: Family,
}

impl Stage {
    /// Start server, guard and proxy, in this order; the guard with these arguments.
    pub fn new(
        front: Front,
        serving: Serving,
        family: Family,
        role: Role,
        words: &str,
    ) -> Result<Stage> {
        let mut stage = Stage::without_proxy(serving, family, role, words)?;
        stage.start_proxy(front)?;
        Ok(stage)
    }

    /// Start the same without a proxy.
    pub fn without_proxy(
        serving: Serving,
        family: Family,
        role: Role,
        words: &str,
    ) -> Result<Stage> {
        let edge = Edge::new()?;
        let server = Running::start(&edge, serving)?;
        let words = format!("--port {PORT} --state-file none {words}");
        let guard = Guard::start_at(edge.node.namespace(), &role.interfaces(), &words)?;
        Ok(Stage { guard, proxies: Vec::new(), server, edge, family })
    }

    pub fn start_proxy(&mut self, front: Front) -> Result<()> {
        self.proxies = front.start(self.edge.proxy(), self.front(), self.server())?;
        Ok(())
    }

    /// Return the address that clients connect to.
    pub fn front(&self) -> SocketAddr {
        SocketAddr::new(edge::front(self.family), FRONT_PORT)
    }

    /// Return the address that the proxy connects to.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.edge.pod().address(self.family), PORT)
    }

    pub fn flows(&self) -> Result<Vec<Flow>> {
        self.guard.ask("flows")
    }

    /// Return the sources that `throttled` lists, in alphabetical order.
    pub fn throttled(&self) -> Result<Vec<String>> {
        let sources: Vec<Source> = self.guard.ask("throttled")?;
        ensure!(sources.iter().all(|source| source.state == "throttled"), "{sources:?}");
        let mut names: Vec<String> = sources.into_iter().map(|source| source.source).collect();
        names.sort();
        Ok(names)
    }

    /// Return the sources that have been limited, now or before, in alphabetical order.
    pub fn limited(&self) -> Result<Vec<String>> {
        let sources: Vec<Source> = self.guard.ask("sources")?;
        let limited = sources.into_iter().filter(|source| {
            source.state == "throttled" || source.defused_total + source.dropped_total > 0
        });
        let mut names: Vec<String> = limited.map(|source| source.source).collect();
        names.sort();
        Ok(names)
    }

    /// Stop proxies and server, unload the guard, and check that nothing is left.
    pub fn finish(self) -> Result<()> {
        let Stage { guard, proxies, server, edge, .. } = self;
        proxies.into_iter().rev().try_for_each(Proxy::stop)?;
        server.stop()?;
        guard.finish()?;
        let names = [edge.clients.path(), edge.node.namespace().path(), edge.proxy().path()];
        drop(edge);
        ensure!(!names.iter().any(|name| name.exists()), "{names:?} are left");
        Ok(())
    }
}
