//! Clients that come back: all at once to the servers that are left, and each for a whole history.

use std::{fmt, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use ws_guard_testkit::{process::Process, usage::Usage};

use super::servers::{Fleet, Servers, Sharing};

const PATIENCE: Duration = Duration::from_secs(180);

/// A history of a thousand publications, to one client after the other.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replay {
    messages: u64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.messages as f64 / self.seconds;
        let Replay { p50_ms, p99_ms, .. } = self;
        write!(
            f,
            "replay of 1,000 messages: {rate:.0} messages/s, {p50_ms:.1} ms (p50), {p99_ms:.1} ms (p99)"
        )
    }
}

pub fn replay(servers: &Servers) -> Result<Replay> {
    let server = servers.ws_guard(&[])?;
    let port = server.port.to_string();
    let load =
        servers.programs.load(&["replay", &port, "--clients", "200", "--messages", "1000"])?;
    load.wait_for(PATIENCE, |line| serde_json::from_str(line).ok())
}

/// From the end of one of three servers to the answer that all of a client's subscriptions go on.
#[derive(Debug, Serialize)]
pub struct Resume {
    #[serde(flatten)]
    seen: Seen,
    /// CPU seconds of the two servers, and of the load generator.
    servers_cpu: f64,
    load_cpu: f64,
}

/// What the clients saw.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    clients: u64,
    p50_ms: f64,
    p99_ms: f64,
    last_ms: f64,
    timed_out: u64,
    refused: u64,
    not_recovered: u64,
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resume { seen, servers_cpu, load_cpu } = self;
        let Seen { clients, p50_ms, p99_ms, last_ms, .. } = seen;
        let Seen { timed_out, refused, not_recovered, .. } = seen;
        write!(
            f,
            "{clients} clients of a killed server, at once to two others: back after {p50_ms:.0} ms \
             (p50), {p99_ms:.0} ms (p99), {last_ms:.0} ms (last); attempts timed out: {timed_out}, \
             refused: {refused}; sessions not recovered: {not_recovered}; CPU time: \
             {servers_cpu:.2} s (servers), {load_cpu:.2} s (clients)"
        )
    }
}

pub fn resume(servers: &Servers, clients: u32) -> Result<Resume> {
    let fleet = servers.fleet(Sharing::WsGuard, 3)?;
    let (ports, clients) = (fleet.ports(), clients.to_string());
    let mut words = vec!["resume"];
    words.extend(ports.iter().map(String::as_str));
    words.extend(["--clients", &clients, "--topics", "300"]);
    let load = servers.programs.load(&words)?;
    load.wait_for(PATIENCE, |line| (line == "ready").then_some(()))?;
    let before = (cpu(left(&fleet))?, cpu([&load])?);
    if let Some(first) = fleet.servers.first() {
        first.process.signal(Signal::SIGKILL)?;
    }
    let seen = load.wait_for(PATIENCE, |line| serde_json::from_str(line).ok())?;
    let (servers_cpu, load_cpu) = (cpu(left(&fleet))? - before.0, cpu([&load])? - before.1);
    Ok(Resume { seen, servers_cpu, load_cpu })
}

/// The servers that are not killed.
fn left(fleet: &Fleet) -> impl Iterator<Item = &Process> {
    fleet.servers.iter().skip(1).map(|server| &server.process)
}

/// CPU seconds that processes have used so far.
fn cpu<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Result<f64> {
    processes.into_iter().map(|process| Ok(Usage::of(process.pid())?.cpu.as_secs_f64())).sum()
}
