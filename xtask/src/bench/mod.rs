//! `cargo xtask bench`: what ws-guard costs.
mod kernel;
#[path = "../../../ws-guard-ebpf/src/bin/ws-guard-bench/patch.rs"]
mod patch;
mod rows;
mod run;
mod server;
mod table;

use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Time a packet in the kernel programs, beside programs that do less
    Kernel(kernel::Args),
    /// Compare the companion server with servers on other libraries: messages, CPU, memory
    Server(server::Args),
}

pub fn main(args: Args) -> Result<()> {
    match args.what {
        What::Kernel(args) => kernel::main(args),
        What::Server(args) => server::main(args),
    }
}
