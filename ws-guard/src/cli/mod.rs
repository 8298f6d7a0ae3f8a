//! Command line: one file per subcommand.

mod allow;
mod backend;
mod blame;
mod completions;
mod connections;
mod doctor;
mod events;
mod exit;
mod flows;
mod hand_over;
mod inspect;
mod log;
mod manual;
mod output;
mod policy;
mod route;
mod run;
mod serve;
mod settings;
mod sources;
mod status;
mod throttle;
mod top;
mod unload;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

use crate::guard::raise_permitted;

const SOCKET: &str = "/run/ws-guard/control.sock";
/// Default control socket of `serve`.
const SERVE_SOCKET: &str = "/run/ws-guard/serve.sock";
const PIN_DIR: &str = "/sys/fs/bpf/ws-guard";

const EXAMPLES: &str = "\
Examples:
  ws-guard run --interface eth0 --port 8080        protect a server: 30 pings in any 10 s
  ws-guard status                                  is it loaded, and is it doing anything
  ws-guard throttled --watch                       sources over the limit, continuously
  ws-guard top                                     all of it live
  ws-guard policy set --max-ping-rate 60           from the next packet on
  ws-guard allow 10.0.0.0/8                        count them, never act on them
  ws-guard inspect app.pcap                        where frames join and split in a capture
  ws-guard doctor                                  what this machine can do, and what is missing
  ws-guard unload                                  take all of it away again

Exit codes:
  0   done
  1   the operation failed; the message says why
  2   the command line is wrong
  64  the configuration has errors; all of them are listed
  65  a capture is damaged, or is none; what was read before is reported
  66  a capture cannot be opened
  69  no daemon answers on the control socket
  77  privileges are missing; the message says which
  78  the pinned maps are of another version";

/// eBPF guard for WebSocket services: counts pings per source in the kernel and neutralises ping
/// floods, without touching the service.
#[derive(Parser)]
#[command(name = "ws-guard", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where the guard is.
#[derive(clap::Args, Clone, Debug)]
pub struct Global {
    /// Unix socket that the daemon listens on and all other commands talk to
    #[arg(long, global = true, value_name = "PATH", env = "WS_GUARD_CONTROL_SOCKET", default_value = SOCKET)]
    control_socket: PathBuf,
    /// Directory in a BPF file system where programs and maps are pinned; no dots in its name
    #[arg(long, global = true, value_name = "DIR", env = "WS_GUARD_PIN_DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    /// Set if the socket was given explicitly.
    #[arg(skip)]
    control_socket_named: bool,
    /// Set if the pin directory was given explicitly.
    #[arg(skip)]
    pin_dir_named: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Load, attach and protect until SIGTERM; protection stays when it ends
    Run(Box<run::Run>),
    /// Serve WebSocket connections, without guarding an interface
    Serve(Box<serve::Serve>),
    /// Show interfaces, policy, packets and tables
    Status(status::StatusCommand),
    /// List the sources that are throttled now
    Throttled(output::Listing),
    /// List the sources that sent pings
    Sources(sources::Sources),
    /// List WebSocket connections
    Flows(output::Listing),
    /// List the companion server's connections
    Connections(connections::Connections),
    /// Show one of them, and what happened to it
    Connection(connections::Connection),
    /// Show the cluster that a user belongs to
    Route(route::Route),
    /// Show or change the policy of the running daemon
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Throttle a source by hand
    Throttle(throttle::ThrottleCommand),
    /// Release a throttled source, and forget its pings
    Release(throttle::ReleaseCommand),
    /// List the allowlist, or add to it
    Allow(allow::AllowCommand),
    /// Show what happened: throttlings, releases, violations, connections
    Events(events::EventsCommand),
    /// Show or change what the running daemon logs
    Log(log::LogCommand),
    /// Watch clients, verdicts and events live, and throttle, release or allow with a key
    Top(top::Top),
    /// Read packet captures: where frames join and split, heartbeats, violations
    Inspect(Box<inspect::Inspect>),
    /// Check kernel, privileges and interfaces, each with a remedy
    Doctor(doctor::Doctor),
    /// Remove programs, maps and pins: the end of protection
    Unload(unload::Unload),
    /// Give directories to a user, as the first step of a container
    HandOver(hand_over::HandOver),
    /// Print a completion script for a shell
    Completions(completions::Completions),
    /// Write the manual pages, one a command
    Manual(manual::Manual),
}

/// Parse, run, and convert errors into a message and an exit code.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return refused(error),
    };
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let named = |name| matches.value_source(name).is_some_and(|s| s != ValueSource::DefaultValue);
    cli.global.control_socket_named = named("control_socket");
    cli.global.pin_dir_named = named("pin_dir");
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => exit::failure(&error),
    }
}

/// Report a usage error, or a flag's wrong variable as a configuration error.
fn refused(error: clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let is_set =
        |arg: &clap::Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some());
    let (error, by_variable) = blame::named(error, &Cli::command(), &arguments, is_set);
    let code = exit::usage(&error);
    if by_variable { exit::configuration() } else { code }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global;
    if !matches!(cli.command, Command::Serve(_)) {
        raise_permitted();
    }
    match cli.command {
        Command::Run(run) => run.run(&global),
        Command::Serve(serve) => serve.run(&global),
        Command::HandOver(hand_over) => hand_over.run().map(|()| ExitCode::SUCCESS),
        Command::Completions(completions) => completions.run(),
        Command::Route(route) => route.run(),
        Command::Manual(manual) => manual.run(),
        Command::Inspect(inspect) => inspect.run(),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(command, &global))
        }
    }
}

/// Run a command that talks to a daemon, or reads the pins.
async fn ask(command: Command, global: &Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status(status) => status.run(global).await?,
        Command::Throttled(listing) => sources::throttled(&listing, global).await?,
        Command::Sources(sources) => sources.run(global).await?,
        Command::Flows(listing) => flows::run(&listing, global).await?,
        Command::Connections(connections) => connections.run(global).await?,
        Command::Connection(connection) => connection.run(global).await?,
        Command::Log(log) => log.run(global).await?,
        Command::Policy(policy) => policy.run(global).await?,
        Command::Throttle(throttle) => throttle.run(global).await?,
        Command::Release(release) => release.run(global).await?,
        Command::Allow(allow) => allow.run(global).await?,
        Command::Events(events) => events.run(global).await?,
        Command::Top(top) => top.run(global).await?,
        Command::Unload(unload) => unload.run(global).await?,
        Command::Doctor(doctor) => return doctor.run(global).await,
        Command::Run(_)
        | Command::Serve(_)
        | Command::Inspect(_)
        | Command::HandOver(_)
        | Command::Completions(_)
        | Command::Route(_)
        | Command::Manual(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_is_for() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
