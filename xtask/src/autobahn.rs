//! `cargo xtask test autobahn`: all cases of Autobahn|Testsuite against the companion server.
use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use ws_guard_testkit::{
    autobahn::{self, COMPRESSION, QUICK, Verdicts},
    process::Process,
    tools,
};

use crate::{setup, step};

/// How many cases there are in all groups.
const CASES: usize = 517;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn main() -> Result<()> {
    setup::autobahn()?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    build.args(["build", "--release", "--package", "ws-guard"]);
    step::run("building ws-guard", build)?;
    let folder = tools::target().join("autobahn");
    // A report of an earlier run must not pass for this one's.
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing the report of an earlier run")?;
    }
    fs::create_dir_all(&folder)?;
    let server = serve()?;
    let address = server.wait_for(PATIENCE, address)?;
    let cases: Vec<&str> = QUICK.into_iter().chain(COMPRESSION).collect();
    step::run("running Autobahn|Testsuite", autobahn::command(address, &cases, &folder)?)?;
    let verdicts = autobahn::verdicts(&folder)?;
    show(&verdicts);
    println!("report: {}", folder.join("reports/index.html").display());
    judge(&verdicts)
}

/// The companion server, with no limit on pings: some cases send them in bursts.
fn serve() -> Result<Process> {
    let mut command = Command::new(tools::target().join("release/ws-guard"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--max-ping-rate", "0"]);
    // The cases of compression keep a machine busy.
    command.args(["--access-log", "/dev/null", "--stall-refuse", "1h", "--stall-shed", "1h"]);
    Process::spawn("ws-guard serve", command)
}

/// Where a line of its log says that it listens.
fn address(line: &str) -> Option<std::net::SocketAddr> {
    line.split("serving WebSocket connections on ").nth(1)?.trim().parse().ok()
}

/// Verdicts by group.
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

fn judge(verdicts: &Verdicts) -> Result<()> {
    let failed: Vec<String> = verdicts
        .iter()
        .filter(|(case, verdict)| !verdict.passed(case))
        .map(|(case, verdict)| format!("{case}: {} / {}", verdict.behavior, verdict.behavior_close))
        .collect();
    ensure!(failed.is_empty(), "{} cases did not pass:\n{}", failed.len(), failed.join("\n"));
    ensure!(verdicts.len() == CASES, "{} cases ran instead of {CASES}", verdicts.len());
    println!("{} cases, all passed", verdicts.len());
    Ok(())
}
