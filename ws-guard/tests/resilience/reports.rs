//! Reports of a terminator that decrypts traffic, on which the kernel acts.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ws_guard_testkit::{certificate, netns::Family, process::Process, tools};

use crate::stage::{Stage, eventually, number};

const TLS_PORT: u16 = 9443;

/// Ping over TLS from client `n`; return the number of answers before the silence.
fn ping(stage: &Stage, n: u8, most: u32) -> Result<u64> {
    let mut command = stage.pair.client.command(tools::python());
    command.arg(tools::foreign().join("wss_flood.py"));
    command.args([Family::V4.client(n).to_string(), Family::V4.server().to_string()]);
    command.args([TLS_PORT.to_string(), most.to_string()]);
    let output = command.output().context("the flooder")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let line: Value = serde_json::from_str(text.trim()).with_context(|| error)?;
    number(&line["answered"])
}

/// The example of the documentation, verbatim.
#[test]
fn a_flood_inside_tls_is_reported_throttled_and_dropped() -> Result<()> {
    needs_root!();
    let ports = format!("{},{TLS_PORT}/tls action=drop", crate::stage::PORT);
    let mut stage = Stage::new(2, &["--port", &ports])?;
    let dir = tempfile::tempdir()?;
    let [cert, key] = certificate::make(dir.path())?;
    let mut command = stage.pair.server.command(tools::python());
    command.arg(tools::workspace().join("docs/examples/wss-reporter.py"));
    command.args(["--cert", &cert, "--key", &key, "--port", &TLS_PORT.to_string()]);
    command.arg("--socket").arg(stage.socket());
    let reporter = Process::spawn("wss-reporter.py", command)?;
    eventually("the terminator listens", || {
        Ok(reporter.lines().iter().any(|line| line.contains("listening")))
    })?;

    // Within the limit: answered, and counted in the kernel.
    let calm = Family::V4.client(1);
    ensure!(ping(&stage, 1, 20)? == 20, "20 pings keep to the limit of 30");
    eventually("the reports are charged", || {
        Ok(stage.source(calm).is_ok_and(|row| row["pings_total"] == 20))
    })?;
    ensure!(stage.source(calm)?["state"] == "ok", "{}", stage.source(calm)?);

    let flooder = Family::V4.client(0);
    let answered = ping(&stage, 0, 5000)?;
    let row = stage.source(flooder)?;
    println!("{answered} answered, then silence: {row}");
    // Reports come twice a second: pings that pass until then are answered.
    ensure!((30..1000).contains(&answered), "{answered} answered");
    ensure!(row["state"] == "throttled" && row["port"] == TLS_PORT, "{row}");
    ensure!(number(&row["pings_total"])? >= answered, "{answered} answered: {row}");
    ensure!(number(&row["dropped_total"])? > 0, "{row}");
    // The port without TLS is unaffected, and so is the other client.
    ensure!(stage.connect(0).is_ok(), "the port without TLS is cut off as well");
    ensure!(ping(&stage, 1, 5)? == 5, "the calm client is cut off as well");
    drop(reporter);
    std::thread::sleep(Duration::from_millis(50));
    stage.stop_server()?;
    stage.finish()
}
