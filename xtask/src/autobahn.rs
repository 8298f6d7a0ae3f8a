//! `cargo xtask test autobahn`: Autobahn|Testsuite against the companion server.
//! All cases are run.
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};
use serde_json::Value;
use ws_guard_testkit::{
    autobahn::{self, COMPRESSION, QUICK, Verdicts},
    netns::{Family, INTERFACE, Namespace, Pair, PairOptions},
    process::Process,
    skip_reason, tools,
};

use crate::{
    guard::{Guard, Profile},
    setup, step,
};

/// Number of cases in all groups, and in those that take seconds.
const CASES: usize = 517;
const QUICK_CASES: usize = 301;
const PATIENCE: Duration = Duration::from_secs(10);

/// Port of the server behind the guard.
const PORT: u16 = 9001;
/// A limit that no burst of Autobahn's reaches:
/// any frame dropped or changed by the guard is a fault.
const LIMIT: u32 = 1_048_576;

#[derive(clap::Args)]
pub struct Args {
    /// Let all of it go through an attached guard (native XDP, between two namespaces), and see that
    /// nothing is dropped or changed
    #[arg(long)]
    guarded: bool,

    /// With the guard's default policy, limit on pings included, in front of a server of its own without one
    #[arg(long, requires = "guarded")]
    defaults: bool,

    /// Only the groups that take seconds: all but compression
    #[arg(long)]
    quick: bool,
}

impl Args {
    fn cases(&self) -> (Vec<&'static str>, usize) {
        if self.quick {
            return (QUICK.to_vec(), QUICK_CASES);
        }
        (QUICK.into_iter().chain(COMPRESSION).collect(), CASES)
    }

    /// Return the name of the report's folder.
    fn name(&self) -> &'static str {
        match (self.guarded, self.defaults) {
            (_, true) => "autobahn-defaults",
            (true, false) => "autobahn-guarded",
            (false, false) => "autobahn",
        }
    }
}

pub fn main(args: &Args) -> Result<()> {
    setup::autobahn()?;
    Profile::Release.build()?;
    let folder = tools::target().join(args.name());
    // A report of an earlier run must not pass for this one's.
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing the report of an earlier run")?;
    }
    fs::create_dir_all(&folder)?;
    if args.guarded { guarded(args, &folder) } else { plain(args, &folder) }
}

fn plain(args: &Args, folder: &Path) -> Result<()> {
    let server = serve(Command::new(program()), "127.0.0.1:0")?;
    run(args, server.wait_for(PATIENCE, address)?, folder, None)
}

/// Do the same, with the guard's programs on the server's interface.
fn guarded(args: &Args, folder: &Path) -> Result<()> {
    if let Some(reason) = skip_reason() {
        bail!("{reason}");
    }
    let pair = Pair::new(PairOptions::default())?;
    let server = SocketAddr::new(Family::V4.server(), PORT);
    let interface = format!("--interface {INTERFACE} --attach xdp-native --port {PORT}");
    // A server inside the daemon applies the policy's limit on pings as well.
    let (own, words) = if args.defaults {
        let own = serve(pair.server.command(program()), &server.to_string())?;
        own.wait_for(PATIENCE, address)?;
        (Some(own), interface)
    } else {
        let inside = format!(
            "--listen {server} --access-log /dev/null --max-ping-rate {LIMIT} --stall-refuse 1h \
             --stall-shed 1h"
        );
        (None, format!("{interface} {inside}"))
    };
    let guard = Guard::start(Profile::Release, &pair.server, &words)?;
    println!("attached: {}", guard.modes()?);
    let passed = run(args, server, folder, Some(&pair.client));
    let unharmed = unharmed(&guard.ask("status")?);
    guard.unload()?;
    drop(own);
    passed.and(unharmed)
}

/// Check that everything was followed, and passed unchanged.
fn unharmed(status: &Value) -> Result<()> {
    let packets = &status["packets"];
    println!("packets: {packets}");
    println!("dropped: {}", status["drops"]);
    let count = |name: &str| packets[name].as_u64().with_context(|| format!("no count of {name}"));
    ensure!(count("tracked")? > 0, "the guard followed no connection");
    // On a busy machine packets overtake each other between two CPUs. Segments behind a second gap
    // are dropped, and retransmitted.
    let late = status["drops"]["gap"].as_u64().unwrap_or(0);
    let (dropped, defused) = (count("dropped")? - late, count("defused")?);
    ensure!(
        dropped + defused == 0,
        "the guard dropped {dropped} packets that were in order, and defused {defused} pings"
    );
    Ok(())
}

fn run(args: &Args, server: SocketAddr, folder: &Path, client: Option<&Namespace>) -> Result<()> {
    let (cases, count) = args.cases();
    let command = autobahn::command(server, &cases, folder, client)?;
    step::run("running Autobahn|Testsuite", command)?;
    let verdicts = autobahn::verdicts(folder)?;
    show(&verdicts);
    println!("report: {}", folder.join("reports/index.html").display());
    judge(&verdicts, count)
}

/// Return the path of the binary, built as for users.
fn program() -> PathBuf {
    Profile::Release.program()
}

/// Start the companion server, unlimited: some cases send pings in bursts.
fn serve(mut command: Command, listen: &str) -> Result<Process> {
    command.args(["serve", "--listen", listen, "--max-ping-rate", "0"]);
    // The cases of compression keep a machine busy.
    command.args(["--access-log", "/dev/null", "--stall-refuse", "1h", "--stall-shed", "1h"]);
    Process::spawn("ws-guard serve", command)
}

/// Parse the listening address in a line of its log.
fn address(line: &str) -> Option<SocketAddr> {
    line.split("serving WebSocket connections on ").nth(1)?.trim().parse().ok()
}

/// Print verdicts by group.
fn show(verdicts: &Verdicts) {
    let mut groups: BTreeMap<u32, BTreeMap<&str, usize>> = BTreeMap::new();
    for (case, verdict) in verdicts {
        let group = case.split('.').next().and_then(|group| group.parse().ok()).unwrap_or(0);
        *groups.entry(group).or_default().entry(&verdict.behavior).or_default() += 1;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["GROUP", "VERDICTS"]);
    for (group, counts) in groups {
        let counts: Vec<String> =
            counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        table.add_row([group.to_string(), counts.join(", ")]);
    }
    println!("{table}");
}

fn judge(verdicts: &Verdicts, cases: usize) -> Result<()> {
    let failed: Vec<String> = verdicts
        .iter()
        .filter(|(case, verdict)| !verdict.passed(case))
        .map(|(case, verdict)| format!("{case}: {} / {}", verdict.behavior, verdict.behavior_close))
        .collect();
    ensure!(failed.is_empty(), "{} cases did not pass:\n{}", failed.len(), failed.join("\n"));
    ensure!(verdicts.len() == cases, "{} cases ran instead of {cases}", verdicts.len());
    println!("{} cases, all passed", verdicts.len());
    Ok(())
}
