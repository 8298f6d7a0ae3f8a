//! `ws-guard-chaos`: clients, checker, store and release gate of chaos runs.
//!
//! `cargo xtask chaos` uses it on one machine, `deploy/chaos` in a cluster: docs/chaos.md.

mod checker;
mod clients;
mod gate;
mod log;
mod report;
mod store;
mod verdict;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Clients, checker, store and release gate of ws-guard's chaos runs")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish, subscribe and come back, and log all of it
    Clients(clients::Args),
    /// Judge a run by the logs of its clients
    Check(checker::Args),
    /// Store a run that was judged
    Store(store::Args),
    /// Draw the stored runs as a page
    Report(report::Args),
    /// Fail if the last three runs have failed
    Gate(gate::Args),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime")?;
    match args.command {
        Command::Clients(args) => runtime.block_on(clients::run(args)),
        Command::Check(args) => checker::run(&args),
        Command::Store(args) => runtime.block_on(store::run(args)),
        Command::Report(args) => runtime.block_on(report::run(&args)),
        Command::Gate(args) => runtime.block_on(gate::run(&args)),
    }
}
