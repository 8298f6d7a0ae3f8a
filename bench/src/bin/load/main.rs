//! The load generator: echoes at a fixed window, idle connections, and publications.
//!
//! Frames are made once and answers are counted by their length, so that it takes less CPU time than
//! any server.

mod connect;
mod echo;
mod fan_out;
mod idle;
mod replay;
mod resume;
mod talk;

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
    /// Publish on many topics; prints `started`, `ended` and what was delivered
    FanOut(fan_out::Args),
    /// Follow a history from its beginning, as many clients; prints how long that took
    Replay(replay::Args),
    /// Come back once the server has ended; prints `ready`, and how long that took; until it is killed
    Resume(resume::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Args::parse().what {
        What::Echo(args) => echo::run(args).await,
        What::Idle(args) => idle::run(args).await,
        What::FanOut(args) => fan_out::run(args).await,
        What::Replay(args) => replay::run(args).await,
        What::Resume(args) => resume::run(args).await,
    }
}
