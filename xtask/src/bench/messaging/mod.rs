//! `cargo xtask bench messaging`: topics of several servers over Redis, compared with socket.io and sockudo.

mod fan_out;
mod returning;
mod servers;
mod table;

use anyhow::Result;
use serde::Serialize;

use super::{
    server::{idle, peers},
    write,
};

#[derive(clap::Args)]
pub struct Args {
    /// How long each set of servers is measured in a round
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    seconds: f64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Publications a second where all get the same load
    #[arg(long, default_value_t = 1000.0, value_name = "N")]
    rate: f64,
    /// Clients that come back at once
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    returning: u32,
    /// Leave out sockudo, which is compiled first: 337 crates
    #[arg(long)]
    no_sockudo: bool,
    /// Take what an earlier run has built
    #[arg(long)]
    no_build: bool,
}

#[derive(Serialize)]
struct Report {
    fan_out: Vec<fan_out::Figures>,
    replay: returning::Replay,
    resume: returning::Resume,
    idle: Vec<idle::Figures>,
}

pub fn main(args: Args) -> Result<()> {
    let programs = peers::programs(!args.no_build)?;
    let servers = servers::Servers::new(&programs, !args.no_sockudo)?;
    let fan_out = fan_out::measure(&servers, &args)?;
    println!("{}\n", table::fan_out(&fan_out));
    let replay = returning::replay(&servers)?;
    println!("{replay}");
    let resume = returning::resume(&servers, args.returning)?;
    println!("{resume}\n");
    let idle = idle::subscribed(&programs)?;
    println!("{}\n", super::server::table::idle(&idle));
    write("messaging", &Report { fan_out, replay, resume, idle })
}
