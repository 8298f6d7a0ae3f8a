//! The guard of the demonstration, and its figures of a source.
use std::{net::IpAddr, time::SystemTime};

use anyhow::{Context, Result};
use ws_guard_testkit::netns::{INTERFACE, Namespace};

use crate::guard::{Guard, Profile};

/// `--max-ping-rate`, in any `--window-seconds`.
/// They are the defaults, but the demonstration depends on them.
pub const MAX_PING_RATE: u64 = 30;
const WINDOW_SECONDS: u64 = 10;

/// Figures of the guard about one source.
#[derive(Clone, Copy, Debug)]
pub struct SourceFigures {
    pub pings: u64,
    pub defused: u64,
    pub throttled: bool,
    /// Time when it was throttled last.
    pub since: Option<SystemTime>,
}

/// Start a guard of the server at `port`.
pub fn start(namespace: &Namespace, port: u16) -> Result<Guard> {
    let limit = format!("--max-ping-rate {MAX_PING_RATE} --window-seconds {WINDOW_SECONDS}");
    let words = format!("--interface {INTERFACE} --action defuse --port {port} {limit}");
    Guard::start(Profile::Dev, namespace, &words)
}

/// Return the row of `sources` for the source at `address`.
pub fn source(guard: &Guard, address: IpAddr) -> Result<Option<SourceFigures>> {
    let sources = guard.ask("sources")?;
    let wanted = address.to_string();
    let rows = sources.as_array().context("`sources -o json` is not an array")?;
    let Some(row) = rows.iter().find(|row| row["source"] == wanted.as_str()) else {
        return Ok(None);
    };
    let number = |field: &str| {
        row[field].as_u64().with_context(|| format!("`sources -o json` has no {field}: {row}"))
    };
    let since = row["throttled_since"].as_str();
    Ok(Some(SourceFigures {
        pings: number("pings_total")?,
        defused: number("defused_total")?,
        throttled: row["state"] == "throttled",
        since: since.map(humantime::parse_rfc3339).transpose().context("throttled_since")?,
    }))
}
