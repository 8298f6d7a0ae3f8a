//! Clients that come back: all at once to the servers that are left, and each for a whole history.

use std::{fmt, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::servers::{Servers, Sharing};

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
#[derive(Debug, Serialize, Deserialize)]
pub struct Resume {
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
        let Resume { clients, p50_ms, p99_ms, last_ms, .. } = self;
        let Resume { timed_out, refused, not_recovered, .. } = self;
        write!(
            f,
            "{clients} clients of a killed server, at once to two others: back after {p50_ms:.0} ms \
             (p50), {p99_ms:.0} ms (p99), {last_ms:.0} ms (last); attempts timed out: {timed_out}, \
             refused: {refused}; sessions not recovered: {not_recovered}"
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
    if let Some(first) = fleet.servers.first() {
        first.process.signal(Signal::SIGKILL)?;
    }
    load.wait_for(PATIENCE, |line| serde_json::from_str(line).ok())
}
