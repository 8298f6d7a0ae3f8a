//! `cargo xtask bench server`: what a message and a connection cost the companion server, beside
//! servers on other libraries. One thread each, the same load from the same program.
mod echo;
mod idle;
mod processes;

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use ws_guard_testkit::tools;

use self::processes::{Kind, build};

#[derive(clap::Args)]
pub struct Args {
    /// Seconds that each server is measured for in a round
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds; each measures every server once with every load, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Connections that send messages
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Only messages, or only memory and heartbeats
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Take what was built before
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Messages,
    Memory,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    let fits = (0.1..=600.0).contains(&seconds);
    fits.then_some(seconds).ok_or_else(|| "must be 0.1 to 600".into())
}

pub fn main(args: Args) -> Result<()> {
    if !args.no_build {
        build()?;
    }
    let mut report = serde_json::Map::new();
    if args.only != Some(Part::Memory) {
        let load = echo::Load {
            time: Duration::from_secs_f64(args.seconds),
            connections: args.connections,
            rounds: args.rounds,
        };
        let results = echo::measure(&load, &Kind::ALL)?;
        println!("{}", echo::render(&results));
        report.insert("messages".into(), serde_json::to_value(&results)?);
    }
    if args.only != Some(Part::Messages) {
        let results = idle::measure()?;
        println!("{}", idle::render(&results));
        report.insert("memory".into(), serde_json::to_value(&results)?);
        let heartbeats = idle::heartbeats()?;
        println!("{heartbeats}");
        report.insert("heartbeats".into(), serde_json::to_value(&heartbeats)?);
    }
    let path = tools::target().join("bench/server.json");
    fs::create_dir_all(tools::target().join("bench"))?;
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("writing {}", path.display()))
}
