//! The browser client: its types, its tests, and clients against the real server.
use std::process::Command;

use anyhow::Result;
use ws_guard_testkit::tools;

use super::{CASES, cargo, report::Report};
use crate::step;

/// Oldest Node.js that its tools run in; the client itself runs in older ones.
const OLDEST_NODE: u32 = 20;
/// Numbers of simultaneously returning clients, ordinary and nightly.
const CLIENTS: [&str; 2] = ["100", "1000"];
const NIGHTLY_CASES: &str = "5000";

pub fn check(report: &mut Report, nightly: bool) {
    if let Some(reason) = unfit() {
        report.skip("browser client", &reason);
        return;
    }
    report.check("browser client: types", || npm("checking the client's types", "check", &[]));
    report.check("browser client: unit tests", || {
        let cases = nightly.then_some((CASES, NIGHTLY_CASES));
        npm("testing the client", "test", cases.as_slice())
    });
    report.check("browser client: against the server", || {
        let build = cargo(&["build", "--package", "ws-guard"]);
        step::run("building the server", build)?;
        let binary = tools::target().join("debug/ws-guard");
        let clients = CLIENTS[usize::from(nightly)];
        let settings =
            [("WS_GUARD_BINARY", &*binary.to_string_lossy()), ("WS_GUARD_CLIENTS", clients)];
        npm("testing the client against the server", "test:integration", &settings)
    });
}

/// Return why it cannot be tested here.
fn unfit() -> Option<String> {
    let version = step::output("node", &["--version"])?;
    let major = version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok()?;
    (major < OLDEST_NODE).then(|| format!("Node.js is {version}, and {OLDEST_NODE} is needed"))
}

fn npm(what: &str, script: &str, settings: &[(&str, &str)]) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", script]).current_dir(tools::client());
    npm.envs(settings.iter().copied());
    step::run(what, npm)
}
