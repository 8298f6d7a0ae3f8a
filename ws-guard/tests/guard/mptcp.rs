//! Multipath TCP between two Linux sockets that both ask for it.
use std::time::Duration;

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    netns::{Family, Pair, PairOptions},
    process::Process,
    tools,
};

use crate::process::Guard;

const PORT: u16 = 9500;
const OBSERVED: u16 = 9501;

/// Connect to `port`; return the reports of client and server.
fn connect(pair: &Pair, server: &Process, port: u16) -> Result<(String, String)> {
    let before = server.lines().len();
    let mut command = pair.client.command(tools::python());
    command.arg(tools::foreign().join("mptcp.py")).arg("client");
    command.args([Family::V4.client(1).to_string(), Family::V4.server().to_string()]);
    let output = command.arg(port.to_string()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wait = Duration::from_secs(5);
    let mut lines = 0;
    let answer = server.wait_for(wait, |line| {
        lines += 1;
        (lines > before).then(|| line.to_string())
    })?;
    Ok((said, answer))
}

#[test]
fn both_ends_go_on_with_plain_tcp_where_the_guard_enforces() -> Result<()> {
    needs_root!();
    if !std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        println!("skipped: this kernel has no Multipath TCP (CONFIG_MPTCP)");
        return Ok(());
    }
    // With offloads checksums are partial, without they are not.
    for offload in [true, false] {
        let pair = Pair::new(PairOptions { offloads: offload, ..PairOptions::default() })?;
        let start = |port: u16| {
            let mut command = pair.server.command(tools::python());
            command.arg(tools::foreign().join("mptcp.py")).args(["server", &port.to_string()]);
            let server = Process::spawn("mptcp.py", command)?;
            let up = |line: &str| line.contains("listening").then_some(());
            server.wait_for(Duration::from_secs(5), up)?;
            anyhow::Ok(server)
        };
        let (guarded, observed) = (start(PORT)?, start(OBSERVED)?);
        let both = |what: &str| (what.to_string(), what.to_string());
        ensure!(connect(&pair, &guarded, PORT)? == both("multipath"), "before the guard");
        let words = format!("--port {PORT},{OBSERVED} --state-file none");
        let guard = Guard::start(&pair.server, &words)?;
        guard.run(&format!("policy set --for-port {OBSERVED} --action observe"))?;
        let found = connect(&pair, &guarded, PORT)?;
        ensure!(found == both("plain"), "offload {offload}: {found:?}");
        let found = connect(&pair, &observed, OBSERVED)?;
        ensure!(found == both("multipath"), "observed, offload {offload}: {found:?}");
        guard.finish()?;
    }
    Ok(())
}
