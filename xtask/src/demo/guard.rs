//! `ws-guard run` in the server's namespace, and what it says.
use std::{
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ws_guard_testkit::{
    netns::{INTERFACE, Namespace},
    process::Process,
    tools,
};

use crate::step;

/// `--max-ping-rate`, in any `--window-seconds`; the defaults, but the demonstration depends on them.
pub const MAX_PING_RATE: u64 = 30;
const WINDOW_SECONDS: u64 = 10;
/// How long it may take until the programs are attached.
const START: Duration = Duration::from_secs(15);

/// Compile it as users run it.
pub fn build() -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--package", "ws-guard"]).current_dir(tools::workspace());
    step::run("building ws-guard", cargo)
}

/// What the guard knows about one source.
#[derive(Clone, Copy, Debug)]
pub struct SourceFigures {
    pub pings: u64,
    pub defused: u64,
    pub throttled: bool,
    /// When it was throttled, for the last time.
    pub since: Option<SystemTime>,
}

/// A guard with pins and a socket of its own; unloaded when dropped.
pub struct Guard {
    process: Process,
    /// The arguments by which the CLI finds it.
    place: [String; 4],
    socket: PathBuf,
    unloaded: bool,
}

impl Guard {
    /// Start it in `namespace` on port `port`, and wait until it is attached.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Guard> {
        let name = format!("ws-guard-demo-{}", std::process::id());
        let socket = std::env::temp_dir().join(format!("{name}.sock"));
        let place = [
            "--pin-dir".to_owned(),
            format!("/sys/fs/bpf/{name}"),
            "--control-socket".to_owned(),
            socket.display().to_string(),
        ];
        let mut command = namespace.command(program());
        command.args(&place).args(["run", "--interface", INTERFACE, "--action", "defuse"]);
        command.arg("--port").arg(port.to_string());
        command.arg("--max-ping-rate").arg(MAX_PING_RATE.to_string());
        command.arg("--window-seconds").arg(WINDOW_SECONDS.to_string());
        let process = Process::spawn("ws-guard run", command)?;
        let mut guard = Guard { process, place, socket, unloaded: false };
        guard.wait_attached()?;
        Ok(guard)
    }

    /// The command line that reaches this guard, for a person to type.
    pub fn shown(&self) -> String {
        format!("{} {}", program().display(), self.place.join(" "))
    }

    /// The modes it is attached in, as `status` shows them.
    pub fn modes(&self) -> Result<String> {
        let status = self.ask("status")?;
        let interface = &status["interfaces"][0];
        let mode = |side: &str| interface[side].as_str().unwrap_or("-").to_owned();
        Ok(format!("{} in, {} out", mode("ingress"), mode("egress")))
    }

    /// What `sources` says about the source at `address`.
    pub fn source(&self, address: std::net::IpAddr) -> Result<Option<SourceFigures>> {
        let sources = self.ask("sources")?;
        let wanted = address.to_string();
        let rows = sources.as_array().context("`sources -o json` is not an array")?;
        let Some(row) = rows.iter().find(|row| row["source"] == wanted.as_str()) else {
            return Ok(None);
        };
        let number = |field: &str| {
            row[field].as_u64().with_context(|| format!("`sources -o json` has no {field}: {row}"))
        };
        let since = row["throttled_since"].as_str();
        Ok(Some(SourceFigures {
            pings: number("pings_total")?,
            defused: number("defused_total")?,
            throttled: row["state"] == "throttled",
            since: since.map(humantime::parse_rfc3339).transpose().context("throttled_since")?,
        }))
    }

    /// End the daemon and take its programs and pins away.
    pub fn unload(mut self) -> Result<()> {
        self.unloaded = true;
        self.remove()
    }

    fn wait_attached(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let error = match self.ask("status") {
                Ok(status) if status["interfaces"][0]["ingress"].is_string() => return Ok(()),
                Ok(status) => anyhow::anyhow!("it is not attached: {status}"),
                Err(error) => error,
            };
            if self.process.ended()?.is_some() || Instant::now() > deadline {
                let said = self.process.lines().join("\n");
                bail!("ws-guard did not start: {error:#}\nit said:\n{said}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn ask(&self, subcommand: &str) -> Result<Value> {
        let output = Command::new(program())
            .args(&self.place)
            .args([subcommand, "-o", "json"])
            .output()
            .context("running ws-guard")?;
        ensure!(
            output.status.success(),
            "`ws-guard {subcommand}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`ws-guard {subcommand} -o json` is not JSON"))
    }

    fn remove(&mut self) -> Result<()> {
        self.process.terminate()?;
        let output = Command::new(program()).args(&self.place).arg("unload").output();
        // The socket belongs to the daemon; this is for one that was killed.
        let _ = std::fs::remove_file(&self.socket);
        let output = output.context("running ws-guard unload")?;
        ensure!(
            output.status.success(),
            "`ws-guard unload` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.unloaded
            && let Err(error) = self.remove()
        {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

fn program() -> PathBuf {
    tools::target().join("release/ws-guard")
}
