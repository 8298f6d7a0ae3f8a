//! Autobahn|Testsuite: an independent fuzzing client, against any server.
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::{netns::Namespace, tools};

/// Groups that take seconds.
/// They are framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, limits, and some of
/// no group.
pub const QUICK: [&str; 9] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];
/// Groups that take minutes: compression.
pub const COMPRESSION: [&str; 2] = ["12.*", "13.*"];

/// Name of the server in the report.
const AGENT: &str = "server";

/// Result of Autobahn for one case.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// `OK`, `NON-STRICT`, `INFORMATIONAL`, `UNIMPLEMENTED`, `FAILED`.
    pub behavior: String,
    /// Result for the way in which the connection was closed.
    pub behavior_close: String,
}

impl Verdict {
    /// Check for OK, or one of the cases in which Autobahn judges nothing.
    pub fn passed(&self, case: &str) -> bool {
        let judges_nothing = case == "7.1.6" || case.starts_with("7.13.");
        let fine = |verdict: &str| verdict == "OK" || verdict == "INFORMATIONAL" && judges_nothing;
        // The end of a connection is sometimes left to the server.
        fine(&self.behavior)
            && (fine(&self.behavior_close) || self.behavior_close == "INFORMATIONAL")
    }
}

/// Verdicts by case.
pub type Verdicts = BTreeMap<String, Verdict>;

/// Create the command that runs `cases` against `server`, reporting to `folder`.
/// It runs in a client's namespace if there is one.
pub fn command(
    server: SocketAddr,
    cases: &[&str],
    folder: &Path,
    client: Option<&Namespace>,
) -> Result<Command> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let specification = json!({
        "outdir": folder.join("reports"),
        "servers": [{ "agent": AGENT, "url": format!("ws://{server}") }],
        "cases": cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    });
    let file = folder.join("specification.json");
    fs::write(&file, specification.to_string()).context("writing the specification")?;
    let mut command = match client {
        Some(namespace) => namespace.command(tools::wstest()),
        None => Command::new(tools::wstest()),
    };
    // It leaves a file in its working directory.
    command.args(["--mode", "fuzzingclient", "--spec"]).arg(&file).current_dir(folder);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Read the results of [`command`].
pub fn verdicts(folder: &Path) -> Result<Verdicts> {
    let file = folder.join("reports/index.json");
    let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut agents: BTreeMap<String, Verdicts> =
        serde_json::from_slice(&text).context("Autobahn's report")?;
    let verdicts = agents.remove(AGENT).unwrap_or_default();
    ensure!(!verdicts.is_empty(), "Autobahn's report holds no case");
    Ok(verdicts)
}
