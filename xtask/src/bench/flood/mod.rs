//! `cargo xtask bench flood`:
//! a flood's effects on honest clients and the server, by response to it.
//!
//! Each run has separate namespaces, a server and a guard, so that no run inherits another's state.
//! The server runs on one CPU, clients and guard on another.
mod case;
mod run;
mod serve;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use ws_guard_testkit::{netns, servers::Library, skip_reason, tools};

use crate::{cpus, guard::Profile, interrupt, setup, step};
use case::{Flood, Mode, Target};
use run::{Plan, Sample};

/// Seconds of a run besides its flood: namespaces, server, guard, clean-up.
const AROUND: u64 = 3;

#[derive(clap::Args)]
pub struct Args {
    /// Servers: tokio-tungstenite, python, ws, gorilla, companion, companion-tls, python-tls; all by default
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    server: Vec<Target>,
    /// Floods: pings, pongs, fragments, messages, pings-beyond-window; all but the last by default
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    flood: Vec<Flood>,
    /// Modes: no-flood, unguarded, observe, defuse-unpaced, defuse, drop; all by default
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Connections of the flooder; a number for each case
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 50],
          value_parser = clap::value_parser!(u16).range(1..=500))]
    connections: Vec<u16>,
    /// How long each flood lasts
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Rounds; each runs every case once in every mode, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Take what an earlier run has built
    #[arg(long)]
    no_build: bool,
    /// How the results are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

/// A server and a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    server: Target,
    flood: Flood,
    connections: u16,
}

/// Results of the rounds for a case in a mode.
#[derive(Debug, Serialize)]
pub struct Figures {
    #[serde(flatten)]
    case: Case,
    mode: Mode,
    rounds: Vec<Sample>,
}

fn or_all<T: Copy>(given: &[T], all: &[T]) -> Vec<T> {
    if given.is_empty() { all.to_vec() } else { given.to_vec() }
}

impl Args {
    /// Return each server with its floods; our user-space TCP has one connection.
    fn cases(&self) -> Vec<Case> {
        let usual = &Flood::ALL[..Flood::ALL.len() - 1];
        let mut cases = Vec::new();
        for server in or_all(&self.server, &Target::ALL) {
            for flood in or_all(&self.flood, usual) {
                for &connections in &self.connections {
                    let case = Case { server, flood, connections };
                    let one = flood != Flood::BeyondWindow || connections == 1;
                    cases.extend((server.takes(flood) && one).then_some(case));
                }
            }
        }
        cases
    }
}

pub fn main(args: Args) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let cases = args.cases();
    if cases.is_empty() {
        bail!("none of these servers takes one of these floods over this number of connections");
    }
    if !args.no_build {
        build(&cases)?;
    }
    interrupt::watch()?;
    netns::remove_stale()?;
    let results = measure(&cases, &args)?;
    super::write("flood", &results)?;
    match args.output {
        Output::Table => println!("{}", table::render(&results)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&results)?),
    }
    Ok(())
}

/// Build everything for the cases.
/// The companion server is measured as users run it; only the guard's kernel programs matter, and
/// they are the same however it is compiled.
fn build(cases: &[Case]) -> Result<()> {
    let libraries: Vec<Library> = cases.iter().filter_map(|case| case.server.library()).collect();
    libraries.iter().try_for_each(|library| setup::demo(*library))?;
    if libraries.contains(&Library::TokioTungstenite) {
        step::run("building the server in Rust", tools::build_tungstenite_echo())?;
    }
    if cases.iter().any(|case| case.server.library().is_none()) {
        Profile::Release.build()?;
    }
    Profile::Dev.build()
}

fn measure(cases: &[Case], args: &Args) -> Result<Vec<Figures>> {
    let modes = or_all(&args.mode, &Mode::ALL);
    let mut results: Vec<Figures> = Vec::new();
    for &case in cases {
        results.extend(modes.iter().map(|&mode| Figures { case, mode, rounds: Vec::new() }));
    }
    let [server, load] = cpus::ends()?;
    // Processes started from here on run along with the load; only the server has a separate CPU.
    cpus::stay_on(load)?;
    let runs = results.len() * args.rounds as usize;
    let least = Duration::from_secs(runs as u64 * (args.seconds + AROUND));
    eprintln!("  {runs} runs, at least {}", humantime::format_duration(least));
    if !cpus::set_priority(cpus::FIRST) {
        eprintln!(
            "  no higher priority than others' work could be had: on a busy machine it is measured too"
        );
    }
    if server == load {
        eprintln!("  there is one CPU only: the load takes its share of the server's");
    }
    let (start, mut number) = (Instant::now(), 0);
    for _ in 0..args.rounds {
        for figures in &mut results {
            number += 1;
            let plan = Plan {
                case: figures.case,
                mode: figures.mode,
                time: Duration::from_secs(args.seconds),
                cpu: server,
            };
            let sample = run::run(plan)?;
            interrupt::check()?;
            let passed = start.elapsed().as_secs();
            eprintln!("  {number}/{runs}, {passed} s: {}", table::line(plan, &sample));
            figures.rounds.push(sample);
        }
    }
    Ok(results)
}
