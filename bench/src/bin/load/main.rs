//! The load generator: echoes at a fixed window, and idle connections.
//!
//! Frames are made once and answers are counted by their length, so that it takes less CPU time than
//! any server.

mod connect;
mod echo;
mod idle;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Echo for a while; prints `{"messages", "seconds"}`
    Echo(echo::Args),
    /// Hold idle connections until SIGTERM; prints `ready`, and `{"pings"}` at the end
    Idle(idle::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Args::parse().what {
        What::Echo(args) => echo::run(args).await,
        What::Idle(args) => idle::run(args).await,
    }
}
