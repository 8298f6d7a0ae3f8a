//! Two namespaces, a server, a guard in front of it, and reports about a client.
use std::{
    fs,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, Pair, PairOptions},
    servers::{Library, Server, Totals},
};

use crate::process::Guard;

/// Port of the first server; others listen on the ports after it.
pub const PORT: u16 = 9001;
/// Time limit for expected events on a busy machine.
pub const WAIT: Duration = Duration::from_secs(10);

/// Set another congestion control for clients that flood.
///
/// BBR takes the pace for a policer's, and keeps to it long after (tcp_bbr.c, `lt_bw`): a flooder's
/// remaining bytes do not arrive in time.
pub fn replace_bbr(pair: &Pair) -> Result<()> {
    pair.client.sysctl("net/ipv4/tcp_congestion_control", "reno")
}

/// A row of `flows -o json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Flow {
    pub client: String,
    pub state: String,
    pub frames_in: u64,
    pub pings_in: u64,
    pub pongs_in: u64,
    pub frames_out: u64,
    pub pongs_out: u64,
    pub defused: u64,
    pub coalesced_segments: u64,
    pub split_headers: u64,
    pub violations: u64,
    pub gaps: u64,
    pub unsynced_total: u64,
    pub heartbeat_rtt_us: Option<u64>,
}

/// A row of `sources -o json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Source {
    pub source: String,
    pub state: String,
    pub pings_total: u64,
    pub defused_total: u64,
    pub dropped_total: u64,
    pub paced: u32,
}

/// Servers and their guard.
pub struct Stage {
    // Dropped in this order: the guard is unloaded in a namespace that still exists.
    pub guard: Guard,
    servers: Vec<Server>,
    pub pair: Pair,
}

impl Stage {
    /// Start one server, and a guard with these arguments.
    pub fn new(library: Library, options: PairOptions, words: &str) -> Result<Stage> {
        Stage::with(&[library], options, words)
    }

    /// Start servers on ports from [`PORT`], all behind one guard.
    pub fn with(libraries: &[Library], options: PairOptions, words: &str) -> Result<Stage> {
        Stage::on(Pair::new(options)?, libraries, words)
    }

    /// Do as [`Stage::with`], in existing namespaces.
    pub fn on(pair: Pair, libraries: &[Library], words: &str) -> Result<Stage> {
        let ports = PORT..PORT + libraries.len() as u16;
        let listed: Vec<String> = ports.clone().map(|port| port.to_string()).collect();
        let servers = libraries.iter().zip(ports);
        let servers =
            servers.map(|(library, port)| Server::start(&pair.server, *library, port, None));
        let servers = servers.collect::<Result<Vec<Server>>>()?;
        let guard = Guard::start(&pair.server, &format!("--port {} {words}", listed.join(",")))?;
        Ok(Stage::of(pair, servers, guard))
    }

    /// Make a stage of servers and a guard, which may be younger than connections.
    pub fn of(pair: Pair, servers: Vec<Server>, guard: Guard) -> Stage {
        Stage { guard, servers, pair }
    }

    /// Connect client number `n` to the first server.
    pub fn client(&self, family: Family, n: u8) -> Result<Client> {
        self.client_of(0, family, n)
    }

    /// Connect client number `n` to server number `server`.
    pub fn client_of(&self, server: usize, family: Family, n: u8) -> Result<Client> {
        let options = ConnectOptions { source: Some(family.client(n)), ..Default::default() };
        let at = self.servers[server].at(family.server());
        Client::connect(&self.pair.client, at, options)
    }

    /// Return server number `n`.
    pub fn server(&self, n: usize) -> &Server {
        &self.servers[n]
    }

    /// Return the guard's row for the client's connection.
    pub fn flow(&self, client: &Client) -> Result<Flow> {
        let name = client.local().to_string();
        let flows: Vec<Flow> = self.guard.ask("flows")?;
        let found = flows.iter().find(|flow| flow.client == name);
        found.cloned().with_context(|| format!("no flow of {name} among {flows:?}"))
    }

    /// Return the guard's row for client `n`, with zero counts for an unknown one.
    pub fn source(&self, family: Family, n: u8) -> Result<Source> {
        let sources: Vec<Source> = self.guard.ask("sources")?;
        let name = source_name(family.client(n));
        Ok(sources.into_iter().find(|source| source.source == name).unwrap_or_default())
    }

    /// Describe drops and their reasons, for messages.
    pub fn drops(&self) -> String {
        let status = self.guard.ask::<serde_json::Value>("status");
        status.map_or_else(|error| format!("{error:#}"), |status| status["drops"].to_string())
    }

    /// Describe the connection as the guard and the client's TCP see it, for messages.
    pub fn story(&self, client: &Client) -> String {
        let port = format!("sport = :{}", client.local().port());
        let told = self.pair.client.command("ss").args(["-Htnoi", &port]).output();
        let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        format!("{:?}, drops {}, the client's TCP {told:?}", self.flow(client), self.drops())
    }

    /// Return the names that `throttled` lists.
    pub fn throttled(&self) -> Result<Vec<String>> {
        let sources: Vec<Source> = self.guard.ask("throttled")?;
        ensure!(sources.iter().all(|source| source.state == "throttled"), "{sources:?}");
        Ok(sources.into_iter().map(|source| source.source).collect())
    }

    pub fn is_throttled(&self, family: Family, n: u8) -> Result<bool> {
        Ok(self.throttled()?.contains(&source_name(family.client(n))))
    }

    /// Stop the servers, unload the guard, and check that nothing is left.
    /// Return the servers' counts, in their order.
    pub fn finish(self) -> Result<Vec<Totals>> {
        let Stage { pair, guard, servers } = self;
        let totals = servers.into_iter().map(Server::stop).collect::<Result<Vec<Totals>>>()?;
        guard.finish()?;
        let names = [pair.client.path(), pair.server.path()];
        drop(pair);
        ensure!(!names.iter().any(|name| fs::exists(name).unwrap_or(true)), "{names:?} are left");
        Ok(totals)
    }

    /// Do as [`Stage::finish`], for one server.
    pub fn finish_one(self) -> Result<Totals> {
        self.finish()?.pop().context("there is a server")
    }
}

/// Return the guard's name for the source at an address: the address, or its /64.
pub fn source_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            format!("{}/64", std::net::Ipv6Addr::from(network))
        }
    }
}

/// Wait until `done` returns true.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
