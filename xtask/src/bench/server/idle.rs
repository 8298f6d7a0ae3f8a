//! Idle connections: memory of each, and the cost of heartbeats.

use std::{fmt, thread, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use ws_guard_testkit::{process::Process, usage::Usage};

use super::peers::{Programs, Serving, Who, text};

/// Numbers of connections: a process may have 20,000 descriptors.
const COUNTS: [usize; 3] = [5_000, 10_000, 15_000];
/// Connections that fill permanent buffers and pools before anything is measured.
const FIRST: usize = 50;
const KIB: f64 = 1024.0;
/// Time limit for 15,000 connections with TLS.
const PATIENCE: Duration = Duration::from_secs(180);

/// History of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Plain,
    /// After an echo of a kilobyte.
    Used,
    /// After the same, with permessage-deflate agreed.
    Deflate,
    Tls,
    /// With one subscription.
    Subscribed,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Used => "after use",
            Kind::Deflate => "deflate, after use",
            Kind::Tls => "TLS",
            Kind::Subscribed => "subscribed",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Kind::Plain | Kind::Tls => &[],
            Kind::Used => &["--used", "1024"],
            Kind::Deflate => &["--used", "1024", "--deflate"],
            Kind::Subscribed => &["--topics", "300"],
        }
    }

    /// Return the server's options for it.
    fn server(self) -> &'static [&'static str] {
        if self == Kind::Subscribed { &["--handler", "topic"] } else { &[] }
    }

    /// Return the limit in KiB a connection; for TLS in addition to rustls' own memory.
    fn limit(self) -> f64 {
        match self {
            Kind::Plain => 2.0,
            Kind::Used | Kind::Tls | Kind::Subscribed => 3.0,
            Kind::Deflate => 4.0,
        }
    }
}

/// Anonymous resident memory, by number of connections.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub who: Who,
    pub kind: Kind,
    pub connections: usize,
    pub kib_each: f64,
    /// Limit of ws-guard. With TLS the memory of bare rustls connections is added.
    pub limit: Option<f64>,
}

pub fn memory(programs: &Programs) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    let most = COUNTS[COUNTS.len() - 1];
    for kind in [Kind::Plain, Kind::Used, Kind::Deflate] {
        for count in COUNTS {
            all.push(one(programs, Who::WsGuard, kind, count, Some(kind.limit()))?);
        }
    }
    for who in Who::SERVERS.into_iter().skip(1) {
        for kind in [Kind::Plain, Kind::Used] {
            all.push(one(programs, who, kind, most, None)?);
        }
    }
    for count in COUNTS {
        let bare = one(programs, Who::Rustls, Kind::Tls, count, None)?;
        let limit = bare.kib_each + Kind::Tls.limit();
        all.push(bare);
        all.push(one(programs, Who::WsGuard, Kind::Tls, count, Some(limit))?);
    }
    Ok(all)
}

/// Measure the same for connections with a subscription.
pub fn subscribed(programs: &Programs) -> Result<Vec<Figures>> {
    let of = |count| {
        let kind = Kind::Subscribed;
        one(programs, Who::WsGuard, kind, count, Some(kind.limit()))
    };
    COUNTS.into_iter().map(of).collect()
}

fn one(
    programs: &Programs,
    who: Who,
    kind: Kind,
    connections: usize,
    limit: Option<f64>,
) -> Result<Figures> {
    let server = programs.serve(who, kind == Kind::Tls, kind.server())?;
    let before = {
        let _first = hold(programs, &server, who, kind, FIRST)?;
        thread::sleep(Duration::from_millis(300));
        anonymous(&server)?
    };
    let _held = hold(programs, &server, who, kind, connections)?;
    thread::sleep(Duration::from_millis(500));
    let grown = anonymous(&server)?.saturating_sub(before);
    let kib_each = grown as f64 / connections as f64 / KIB;
    eprintln!(
        "  {}, {}: {connections} connections, {kib_each:.2} KiB each",
        who.name(),
        kind.name()
    );
    Ok(Figures { who, kind, connections, kib_each, limit })
}

fn anonymous(server: &Serving) -> Result<u64> {
    Ok(Usage::of(server.process.pid())?.anonymous)
}

/// Hold connections until the process is dropped.
fn hold(
    programs: &Programs,
    server: &Serving,
    who: Who,
    kind: Kind,
    connections: usize,
) -> Result<Process> {
    let (port, connections) = (server.port.to_string(), connections.to_string());
    let mut args = vec!["idle", &port, "--connections", &connections];
    args.extend(kind.flags());
    if kind == Kind::Tls {
        args.extend(["--ca", text(&programs.certificate.cert)]);
    }
    if who == Who::Rustls {
        args.push("--bare");
    }
    let load = programs.load(&args)?;
    load.wait_for(PATIENCE, |line| (line == "ready").then_some(()))
        .with_context(|| format!("{}, {}", who.name(), kind.name()))?;
    Ok(load)
}

/// Cost of pinging idle connections.
#[derive(Debug, Serialize)]
pub struct Heartbeats {
    connections: usize,
    ping_interval_seconds: u64,
    seconds: u64,
    pings: u64,
    cpu_seconds: f64,
}

impl fmt::Display for Heartbeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.cpu_seconds / self.pings as f64 * 1e6;
        let share = self.cpu_seconds / self.seconds as f64 * 100.0;
        write!(
            f,
            "heartbeats: {} connections pinged every {} s: {} pings in {} s, {share:.1} % of a CPU, \
             {each:.1} us a ping and its pong",
            self.connections, self.ping_interval_seconds, self.pings, self.seconds
        )
    }
}

/// Ping the largest crowd often, and measure the cost.
pub fn heartbeats(programs: &Programs) -> Result<Heartbeats> {
    const INTERVAL: u64 = 5;
    const SECONDS: u64 = 30;
    let connections = COUNTS[COUNTS.len() - 1];
    eprintln!("  heartbeats of {connections} connections, {SECONDS} s");
    let server = programs.serve(Who::WsGuard, false, &["--ping-interval", "5s"])?;
    let mut held = hold(programs, &server, Who::WsGuard, Kind::Plain, connections)?;
    let before = Usage::of(server.process.pid())?.cpu;
    thread::sleep(Duration::from_secs(SECONDS));
    let cpu = Usage::of(server.process.pid())?.cpu - before;
    held.terminate()?;
    let pings = held.wait_for(Duration::from_secs(5), |line| {
        serde_json::from_str::<Value>(line).ok()?["pings"].as_u64()
    })?;
    Ok(Heartbeats {
        connections,
        ping_interval_seconds: INTERVAL,
        seconds: SECONDS,
        pings,
        cpu_seconds: cpu.as_secs_f64(),
    })
}
