//! Anonymous memory of idle connections, and the CPU time of their heartbeats.
use std::{fmt, thread::sleep, time::Duration};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use ws_guard_testkit::usage::Usage;

use super::processes::{Certificate, Kind, Server, load};

/// How long so many connections may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// From the last connection to the measurement.
const SETTLE: Duration = Duration::from_secs(1);
/// Connections that have come and gone before, so that what stays is there.
const FIRST: u32 = 50;
/// Connections with TLS, and those that are asked for heartbeats.
const SOME: u32 = 5000;

/// What so many connections take.
#[derive(Debug, Serialize)]
pub struct Figures {
    server: &'static str,
    kind: &'static str,
    connections: u32,
    bytes_each: u64,
    /// KiB, with what a bare TLS connection takes left out.
    goal_kib: Option<f64>,
    over_bare_tls: Option<i64>,
}

pub fn measure() -> Result<Vec<Figures>> {
    let mut results = Vec::new();
    let ours = || Server::ours(&[]);
    for (kind, goal_kib) in [("plain", 2.0), ("used", 3.0), ("deflate", 4.0)] {
        for connections in [SOME, 10_000, 15_000] {
            let bytes_each = each(ours()?, kind, connections, None)?;
            let (server, goal_kib) = ("ws-guard", Some(goal_kib));
            results.push(Figures {
                server,
                kind,
                connections,
                bytes_each,
                goal_kib,
                over_bare_tls: None,
            });
        }
    }
    for other in Kind::ALL.into_iter().filter(|kind| *kind != Kind::WsGuard) {
        let bytes_each = each(Server::start(other)?, "plain", SOME, None)?;
        results.push(Figures {
            server: other.name(),
            kind: "plain",
            connections: SOME,
            bytes_each,
            goal_kib: None,
            over_bare_tls: None,
        });
    }
    results.extend(tls()?);
    Ok(results)
}

/// The companion server with TLS, beside TLS and nothing over it.
fn tls() -> Result<[Figures; 2]> {
    let certificate = Certificate::make()?;
    let path = |path: &std::path::Path| path.display().to_string();
    let (chain, key) = (path(&certificate.chain), path(&certificate.key));
    let bare = each(Server::bare_tls(&certificate)?, "bare-tls", SOME, Some(&chain))?;
    let ours = Server::ours(&["--tls-certificate", &chain, "--tls-key", &key])?;
    let ours = each(ours, "tls", SOME, Some(&chain))?;
    let figures = |server, bytes_each, over_bare_tls, goal_kib| Figures {
        server,
        kind: "TLS",
        connections: SOME,
        bytes_each,
        goal_kib,
        over_bare_tls,
    };
    Ok([
        figures("rustls alone", bare, None, None),
        figures("ws-guard", ours, Some(ours as i64 - bare as i64), Some(3.0)),
    ])
}

/// Bytes that each of so many connections takes.
fn each(server: Server, kind: &str, count: u32, certificate: Option<&str>) -> Result<u64> {
    eprintln!("  {count} idle connections, {kind}");
    let open = |count: u32| {
        let mut arguments = vec!["idle".to_owned(), server.address.to_string()];
        arguments.extend([count.to_string(), kind.to_owned()]);
        arguments.extend(certificate.map(str::to_owned));
        let load = load(&arguments)?;
        load.wait_for(PATIENCE, |line| (line == "ready").then_some(()))?;
        sleep(SETTLE);
        anyhow::Ok(load)
    };
    drop(open(FIRST)?);
    sleep(SETTLE);
    let before = Usage::of(server.process.pid())?.anonymous;
    let _load = open(count)?;
    let after = Usage::of(server.process.pid())?.anonymous;
    Ok(after.saturating_sub(before) / u64::from(count))
}

/// CPU time of the heartbeats of idle connections.
#[derive(Debug, Serialize)]
pub struct Heartbeats {
    connections: u32,
    interval_seconds: u32,
    seconds: f64,
    /// User and system time.
    cpu_seconds: f64,
}

/// Idle connections that answer their pings, for one interval: each is pinged about once.
pub fn heartbeats() -> Result<Heartbeats> {
    const INTERVAL: u32 = 25;
    eprintln!("  heartbeats of {SOME} connections");
    let server = Server::ours(&[])?;
    let arguments = ["idle", &server.address.to_string(), &SOME.to_string(), "plain"];
    let load = load(&arguments.map(str::to_owned))?;
    load.wait_for(PATIENCE, |line| (line == "ready").then_some(()))?;
    // From here on everybody's first ping has gone out.
    sleep(Duration::from_secs(INTERVAL.into()));
    let before = Usage::of(server.process.pid())?.cpu;
    let time = Duration::from_secs(INTERVAL.into());
    sleep(time);
    let cpu = Usage::of(server.process.pid())?.cpu.saturating_sub(before);
    Ok(Heartbeats {
        connections: SOME,
        interval_seconds: INTERVAL,
        seconds: time.as_secs_f64(),
        cpu_seconds: cpu.as_secs_f64(),
    })
}

impl fmt::Display for Heartbeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "heartbeats of {} connections, every {} s: {:.2} s of CPU time in {:.0} s",
            self.connections, self.interval_seconds, self.cpu_seconds, self.seconds
        )
    }
}

/// A table, a line a server and kind of connection.
pub fn render(results: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["CONNECTIONS", "KIND", "SERVER", "KIB EACH", "GOAL"]);
    for figures in results {
        let kib = figures.bytes_each as f64 / 1024.0;
        let judged = figures.over_bare_tls.map_or(kib, |bytes| bytes as f64 / 1024.0);
        let goal = figures.goal_kib.map_or(String::new(), |goal| {
            let over = if judged > goal { ", over it" } else { "" };
            let above = if figures.over_bare_tls.is_some() { " above rustls alone" } else { "" };
            format!("{goal:.0}{above}{over}")
        });
        table.add_row([
            figures.connections.to_string(),
            figures.kind.to_owned(),
            figures.server.to_owned(),
            format!("{kib:.2}"),
            goal,
        ]);
    }
    for number in [0, 3] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
