//! A guard and a companion server as users start them, side by side in a namespace.
use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, INTERFACE, Pair, PairOptions},
    process::Process,
};

use crate::{files, http, prometheus::Pod};

/// For what must come, on a busy machine.
const WAIT: Duration = Duration::from_secs(60);
/// Where the companion server listens, and what the guard protects.
pub const PORT: u16 = 8080;
const GUARD_METRICS: u16 = 9464;
const SERVER_METRICS: u16 = 9465;

/// Wait until `done` says so.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Both programs, and the namespaces that they are in.
pub struct Stage {
    pub guard: Process,
    pub server: Process,
    place: [String; 4],
    folder: TempDir,
    // Last, because the others are in it.
    pub pair: Pair,
}

impl Stage {
    pub fn start() -> Result<Stage> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let pair = Pair::new(PairOptions { clients: 40, ..PairOptions::default() })?;
        let folder = TempDir::with_prefix("wsg-stage-")?;
        let place = [
            "--pin-dir".to_owned(),
            format!("/sys/fs/bpf/wsg-alarms-{}-{number}", std::process::id()),
            "--control-socket".to_owned(),
            folder.path().join("control.sock").display().to_string(),
        ];
        let program = env!("CARGO_BIN_EXE_ws-guard");
        let mut server = pair.server.command(program);
        server.args(["serve", "--max-ping-rate=0", "--access-log=/dev/null"]);
        // It may be late here without refusing anybody.
        server.args(["--stall-refuse=20s", "--stall-shed=30s"]);
        server.arg(format!("--listen=[::]:{PORT}"));
        server.arg(format!("--metrics-listen=127.0.0.1:{SERVER_METRICS}"));
        let server = Process::spawn("ws-guard serve", server)?;
        let mut guard = pair.server.command(program);
        guard.args(&place).args(["run", "--state-file=none", "--max-sources=64"]);
        guard.arg(format!("--interface={INTERFACE}")).arg(format!("--port={PORT}"));
        guard.arg(format!("--metrics-listen=127.0.0.1:{GUARD_METRICS}"));
        guard.arg("--config").arg(folder.path().join("guard.toml"));
        fs::write(folder.path().join("guard.toml"), "action = \"defuse\"\n")?;
        let guard = Process::spawn("ws-guard run", guard)?;
        let stage = Stage { guard, server, place, folder, pair };
        let ready = |port| {
            let answer = http::get(&stage.pair.server, ([127, 0, 0, 1], port).into(), "/readyz");
            answer.is_ok_and(|(status, _)| status == 200)
        };
        let both = || Ok(ready(GUARD_METRICS) && ready(SERVER_METRICS));
        match eventually("both are ready", both) {
            Ok(()) => Ok(stage),
            Err(error) => Err(error.context(stage.guard.lines().join("\n"))),
        }
    }

    /// Change the guard's configuration file.
    pub fn configure(&self, text: &str) -> Result<()> {
        fs::write(self.folder.path().join("guard.toml"), text).context("writing guard.toml")
    }

    /// As the discovery of pods would show both.
    pub fn pods(&self) -> [Pod; 2] {
        let at = |port| format!("127.0.0.1:{port}");
        [
            Pod { component: "guard", name: "guard-x", node: "node-1", address: at(GUARD_METRICS) },
            Pod {
                component: "server",
                name: "server-x",
                node: "node-2",
                address: at(SERVER_METRICS),
            },
        ]
    }

    /// What the pins say, also while the daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        let mut status = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        status.args(["--control-socket=/nobody-listens-here", "status", "-o", "json"]);
        status.args(&self.place[..2]);
        Ok(serde_json::from_str(&files::run(status)?)?)
    }

    /// Connect client number `n`.
    pub fn client(&self, n: u8, reads: bool) -> Result<Client> {
        let source = Some(Family::V4.client(n));
        let options = ConnectOptions { source, reads, receive_buffer: None };
        Client::connect(&self.pair.client, (Family::V4.server(), PORT).into(), options)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // One that a test has stopped would not hear anything else.
        let _ = self.guard.signal(nix::sys::signal::Signal::SIGCONT);
        let ended = self.guard.terminate();
        let mut unload = self.pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
        unload.args(&self.place).args(["unload", "--if-loaded"]);
        let unloaded = files::run(unload);
        for error in [ended.err(), unloaded.err()].into_iter().flatten() {
            eprintln!("cleaning up: {error:#}");
        }
    }
}
