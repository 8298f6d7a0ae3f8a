//! `cargo xtask`: set-up, build, image, demonstration, tests and benchmarks.
mod apt;
mod autobahn;
mod bench;
mod build_ebpf;
mod chaos;
mod cpus;
mod dashboards;
mod demo;
mod docs;
mod guard;
mod image;
mod interrupt;
mod k8s;
mod manifests;
mod package;
mod release;
mod setup;
mod sources;
mod step;
mod test;
mod vm;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, build, demonstration and tests of ws-guard")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure what ws-guard costs
    Bench(bench::Args),
    /// Inflict faults on a fleet of servers, and judge by what their clients saw
    Chaos(chaos::Args),
    /// Install what building and testing need: the eBPF toolchain and other people's WebSocket servers
    Setup(setup::Args),
    /// Build the kernel programs and renew the committed object
    BuildEbpf(build_ebpf::Args),
    /// Renew Grafana's dashboards from their source, deploy/grafana/source
    Dashboards,
    /// Attack a third-party server, without and with ws-guard, and compare
    Demo(demo::Args),
    /// Renew the pages that are made from the code: docs/metrics.md
    Docs,
    /// Make the container image: a static binary and nothing else
    Image(image::Args),
    /// Renew the folders of deploy/kubernetes from the Helm chart
    Manifests,
    /// Make the Debian package
    Package(package::Args),
    /// Make everything that a release consists of
    Release(release::Args),
    /// Run every check and test: formatting, lints, host tests, kernel tests
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::main(args),
        Command::Chaos(args) => chaos::main(args),
        Command::Setup(args) => setup::main(args),
        Command::BuildEbpf(args) => build_ebpf::main(args),
        Command::Dashboards => dashboards::main(),
        Command::Demo(args) => demo::main(args),
        Command::Docs => docs::main(),
        Command::Image(args) => image::main(args),
        Command::Package(args) => package::main(args),
        Command::Release(args) => release::main(args),
        Command::Manifests => manifests::main(),
        Command::Test(args) => test::main(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
