//! `cargo xtask bench server`: the companion server beside servers on other libraries.

mod echo;
mod idle;
mod peers;
mod table;

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use ws_guard_testkit::tools;

#[derive(clap::Args)]
pub struct Args {
    /// How long each server echoes in a round
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    seconds: f64,
    /// Rounds; each measures every server in every case, and the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Connections that echo at the same time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Leave out the memory of idle connections
    #[arg(long, conflicts_with = "idle_only")]
    echo_only: bool,
    /// Leave out the echoes
    #[arg(long)]
    idle_only: bool,
    /// Take what an earlier run has built
    #[arg(long)]
    no_build: bool,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    seconds: f64,
    connections: u32,
    echo: Vec<echo::Figures>,
    idle: Vec<idle::Figures>,
    heartbeats: Option<idle::Heartbeats>,
}

pub fn main(args: Args) -> Result<()> {
    let programs = peers::programs(!args.no_build)?;
    let mut report = Report {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
        seconds: args.seconds,
        connections: args.connections,
        echo: Vec::new(),
        idle: Vec::new(),
        heartbeats: None,
    };
    if !args.idle_only {
        report.echo = echo::measure(&programs, &args)?;
        println!("{}\n", table::echo(&report.echo));
    }
    if !args.echo_only {
        report.idle = idle::memory(&programs)?;
        println!("{}\n", table::idle(&report.idle));
        let heartbeats = idle::heartbeats(&programs)?;
        println!("{heartbeats}");
        report.heartbeats = Some(heartbeats);
    }
    let path = tools::target().join("bench/server.json");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let json = serde_json::to_string_pretty(&report)?;
    fs::write(&path, json).with_context(|| format!("writing {}", path.display()))
}
