//! `cargo xtask chaos`: a fleet under faults, and an independent verdict on what its clients saw.
//!
//! docs/chaos.md tells how to read the report, and how to replay a failure.

mod clients;
mod database;
mod faults;
mod inflict;
mod topology;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use ws_guard_testkit::{netns, skip_reason, tools};

use self::{
    clients::{Clients, Load, program},
    database::Database,
    faults::{Fault, Planned, Wanted},
    inflict::Weather,
    topology::Fleet,
};
use crate::{interrupt, setup, step};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<What>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum What {
    /// Draw the stored runs as a page
    Report(Report),
    /// Fail if the last three runs have failed
    Gate(Stored),
}

#[derive(clap::Args)]
struct Stored {
    /// PostgreSQL with the runs [default: one of this workspace's own]
    #[arg(long, value_name = "URL", env = "WS_GUARD_CHAOS_DATABASE", hide_env_values = true)]
    database: Option<String>,
}

#[derive(clap::Args)]
struct Report {
    #[command(flatten)]
    stored: Stored,
    /// Where to write the page [default: target/chaos/report.html]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Run {
    /// Minutes under faults
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// What the faults are drawn from [default: drawn by chance, and told]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only faults of this kind, and no others; may be given again
    #[arg(long, value_enum, value_name = "FAULT")]
    only: Vec<Fault>,
    /// Servers of the fleet
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    servers: u8,
    /// The faults in the log of an earlier run, target/chaos/RUN/faults.jsonl, and no others
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "minutes"])]
    replay: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    stored: Stored,
    /// Do not store the run
    #[arg(long)]
    no_store: bool,
    /// Take what an earlier run has built
    #[arg(long)]
    no_build: bool,
}

/// A number of minutes that makes sense.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if (0.1..=600.0).contains(&minutes) { Ok(minutes) } else { Err("give 0.1 to 600".to_owned()) }
}

/// Where runs are kept.
fn home() -> PathBuf {
    tools::target().join("chaos")
}

pub fn main(args: Args) -> Result<()> {
    match args.command {
        None => run(&args.run),
        Some(What::Report(report)) => {
            let output = report.output.unwrap_or_else(|| home().join("report.html"));
            stored(&report.stored, &["report", "--output", &output.display().to_string()])
        }
        Some(What::Gate(of)) => stored(&of, &["gate"]),
    }
}

/// Do something with the stored runs.
fn stored(stored: &Stored, words: &[&str]) -> Result<()> {
    build(false)?;
    interrupt::watch()?;
    let database = Database::open(stored.database.as_deref(), &home())?;
    let mut command = Command::new(program());
    command.args(words).env("WS_GUARD_CHAOS_DATABASE", &database.url);
    let status = command.status().context("running ws-guard-chaos")?;
    ensure!(status.success(), "`ws-guard-chaos {}` ended with {status}", words[0]);
    Ok(())
}

/// Optimised: what is measured is the fleet, and not how slow it was compiled.
fn build(guard: bool) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--package", "ws-guard-chaos"]);
    if guard {
        cargo.args(["--package", "ws-guard"]);
    }
    cargo.current_dir(tools::workspace());
    step::run("building ws-guard and the clients", cargo)
}

fn run(args: &Run) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("a chaos run {}", reason.replace("cargo xtask test", "cargo xtask chaos"));
    }
    setup::chaos()?;
    if !args.no_build {
        build(true)?;
    }
    interrupt::watch()?;
    netns::remove_stale()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let servers = usize::from(args.servers);
    let plan = match &args.replay {
        Some(path) => faults::read(path, servers)?,
        None => faults::plan(&Wanted { seed, minutes: args.minutes, servers, only: &args.only }),
    };
    let began = SystemTime::now();
    let name = humantime::format_rfc3339_seconds(began).to_string().replace(':', "-");
    let folder = home().join(&name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    faults::write(&folder.join("faults.jsonl"), &plan)?;
    eprintln!("  seed {seed}, {} faults; logs in {}", plan.len(), folder.display());
    let minutes = if args.replay.is_some() { length(&plan) } else { args.minutes };
    carry_out(args, &folder, &plan, seed, minutes)?;
    let verdict = folder.join("verdict.json");
    let mut check = Command::new(program());
    check.arg("check").arg(&folder).arg("--verdict").arg(&verdict);
    let passed = check.status().context("running the checker")?.success();
    ensure!(verdict.exists(), "the checker came to no verdict");
    if !args.no_store {
        let began = humantime::format_rfc3339_seconds(began).to_string();
        store(args, &folder, &began, seed, minutes)?;
    }
    tidy(&folder, passed)?;
    ensure!(
        passed,
        "the run has failed; again: cargo xtask chaos --servers {servers} --replay {}",
        folder.join("faults.jsonl").display()
    );
    Ok(())
}

/// Minutes that these faults take.
fn length(plan: &[Planned]) -> f64 {
    let end = plan.iter().map(|fault| fault.at + fault.lasts).fold(0.0, f64::max);
    end / 60.0 + 0.2
}

/// The fleet, its clients, and what is done to it.
fn carry_out(args: &Run, folder: &Path, plan: &[Planned], seed: u64, minutes: f64) -> Result<()> {
    eprintln!("  starting {} servers ...", args.servers);
    let mut fleet = Fleet::start(folder, args.servers.into())?;
    let mut weather = Weather::new(&fleet);
    for planned in plan.iter().filter(|planned| planned.fault == Fault::Delay) {
        weather.begin(&fleet, planned)?;
    }
    eprintln!("  starting the clients ...");
    let mut clients = Clients::start(&fleet, folder, &args.load, seed)?;
    let start = Instant::now();
    for planned in plan.iter().filter(|planned| planned.fault != Fault::Delay) {
        inflict::wait(Duration::from_secs_f64(planned.at).saturating_sub(start.elapsed()));
        interrupt::check()?;
        let server = planned.server.map_or(String::new(), |server| format!(" of server {server}"));
        let (at, lasts) = (start.elapsed().as_secs_f64(), planned.lasts);
        eprintln!("  {at:6.1} s: {}{server}, {lasts} s", planned.fault.name());
        inflict::inflict(&mut fleet, &mut weather, planned)
            .with_context(|| format!("inflicting {}", planned.fault.name()))?;
        clients.check()?;
    }
    inflict::wait(Duration::from_secs_f64(minutes * 60.0).saturating_sub(start.elapsed()));
    interrupt::check()?;
    eprintln!("  waiting until everything has arrived ...");
    clients.finish()?;
    fleet.stop()
}

fn store(args: &Run, folder: &Path, began: &str, seed: u64, minutes: f64) -> Result<()> {
    let database = Database::open(args.stored.database.as_deref(), &home())?;
    let mut command = Command::new(program());
    command.arg("store").arg(folder).args(["--began", began]);
    command.args(["--seed", &seed.to_string(), "--minutes", &minutes.to_string()]);
    command.args(["--version", &version()]);
    command.env("WS_GUARD_CHAOS_DATABASE", &database.url);
    step::run("storing the run", command)
}

/// What the fleet was built from.
fn version() -> String {
    let root = tools::workspace().display().to_string();
    step::output("git", &["-C", &root, "describe", "--always", "--dirty"])
        .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

/// Logs of clients are kept only where they tell why a run has failed.
fn tidy(folder: &Path, passed: bool) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let keep = match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl" | "log") => !passed || path.ends_with("faults.jsonl"),
            extension => extension == Some("json"),
        };
        match (keep, path.is_dir()) {
            (true, _) => {}
            (false, true) => fs::remove_dir_all(&path)?,
            (false, false) => fs::remove_file(&path)?,
        }
    }
    Ok(())
}
