//! `cargo xtask bench server`: the companion server compared with others.

mod echo;
pub mod idle;
pub mod peers;
pub mod table;

use anyhow::Result;
use serde::Serialize;

use super::write;

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
    seconds: f64,
    connections: u32,
    echo: Vec<echo::Figures>,
    idle: Vec<idle::Figures>,
    heartbeats: Option<idle::Heartbeats>,
}

pub fn main(args: Args) -> Result<()> {
    let programs = peers::programs(!args.no_build)?;
    let mut report = Report {
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
    write("server", &report)
}
