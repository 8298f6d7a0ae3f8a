//! A guard and a companion server as users start them, side by side in a namespace.
use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    netns::{Family, INTERFACE, Pair, PairOptions},
    process::Process,
};

use crate::{files, http, prometheus::Pod};

/// Time limit for expected events on a busy machine.
const WAIT: Duration = Duration::from_secs(60);
/// Port of the companion server, which the guard protects.
pub const PORT: u16 = 8080;
const GUARD_METRICS: u16 = 9464;
const SERVER_METRICS: u16 = 9465;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ws-guard");
/// Options of the server in either place.
/// It may be late here without refusing clients.
const SERVER: [&str; 4] =
    ["--listen=[::]:8080", "--access-log=/dev/null", "--stall-refuse=20s", "--stall-shed=30s"];

/// Wait until `done` returns true.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Both programs, and their namespaces.
pub struct Stage {
    pub guard: Process,
    /// The server as a separate process; `None` where the guard has it.
    pub server: Option<Process>,
    place: [String; 4],
    folder: TempDir,
    // Last, because the others are in it.
    pub pair: Pair,
}

impl Stage {
    /// Start both apart, as in Kubernetes.
    pub fn start() -> Result<Stage> {
        Stage::apart(&[])
    }

    /// Start both apart, with further options of the server.
    pub fn apart(options: &[&str]) -> Result<Stage> {
        Stage::with(|pair, _| {
            let mut server = pair.server.command(PROGRAM);
            server.args(["serve", "--max-ping-rate=0"]).args(SERVER).args(options);
            server.arg(format!("--metrics-listen=127.0.0.1:{SERVER_METRICS}"));
            Ok(Some(Process::spawn("ws-guard serve", server)?))
        })
    }

    /// Start the server in the guard, `run --listen`.
    /// It has topics, and a bus and telemetry that go nowhere.
    pub fn together() -> Result<Stage> {
        Stage::with(|_, guard| {
            guard.args(SERVER).args(["--handler=topic", "--bus=redis://127.0.0.1:9"]);
            guard.arg("--otlp-endpoint=http://127.0.0.1:9");
            guard.args(["--event-log=otlp", "--top-sources=1"]);
            Ok(None)
        })
    }

    /// Start the server in the guard, with telemetry to a local collector.
    /// It exports ten times a second.
    pub fn collected() -> Result<Stage> {
        Stage::with(|_, guard| {
            guard.args(SERVER).args(["--otlp-endpoint=http://127.0.0.1:4318", "--event-log=otlp"]);
            for variable in ["METRIC_EXPORT_INTERVAL", "BSP_SCHEDULE_DELAY", "BLRP_SCHEDULE_DELAY"]
            {
                guard.env(format!("OTEL_{variable}"), "100");
            }
            Ok(None)
        })
    }

    /// Start a stage; `server` starts a process, or extends the guard's command.
    fn with(server: impl FnOnce(&Pair, &mut Command) -> Result<Option<Process>>) -> Result<Stage> {
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
        let mut guard = pair.server.command(PROGRAM);
        guard.args(&place).args(["run", "--state-file=none", "--max-sources=64"]);
        guard.arg(format!("--interface={INTERFACE}")).arg(format!("--port={PORT}"));
        guard.arg(format!("--metrics-listen=127.0.0.1:{GUARD_METRICS}"));
        guard.arg("--config").arg(folder.path().join("guard.toml"));
        fs::write(folder.path().join("guard.toml"), "action = \"defuse\"\n")?;
        let server = server(&pair, &mut guard)?;
        let guard = Process::spawn("ws-guard run", guard)?;
        let stage = Stage { guard, server, place, folder, pair };
        let mut ports = vec![GUARD_METRICS];
        ports.extend(stage.server.as_ref().map(|_| SERVER_METRICS));
        let ready = |port: &u16| stage.get(*port, "/readyz").is_ok_and(|(status, _)| status == 200);
        match eventually("both are ready", || Ok(ports.iter().all(ready))) {
            Ok(()) => Ok(stage),
            Err(error) => Err(error.context(stage.guard.lines().join("\n"))),
        }
    }

    fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        http::get(&self.pair.server, ([127, 0, 0, 1], port).into(), path)
    }

    /// Return the guard's metrics.
    pub fn metrics(&self) -> Result<String> {
        let (status, text) = self.get(GUARD_METRICS, "/metrics")?;
        ensure!(status == 200, "{status}: {text}");
        Ok(text)
    }

    /// Change the guard's configuration file.
    pub fn configure(&self, text: &str) -> Result<()> {
        fs::write(self.folder.path().join("guard.toml"), text).context("writing guard.toml")
    }

    /// Return the pods as the discovery would show them.
    pub fn pods(&self) -> Vec<Pod> {
        let pod = |component, name, node, port| {
            let address = format!("127.0.0.1:{port}");
            Pod { component, name, node, address }
        };
        let mut pods = vec![pod("guard", "guard-x", "node-1", GUARD_METRICS)];
        let server = |_| pod("server", "server-x", "node-2", SERVER_METRICS);
        pods.extend(self.server.as_ref().map(server));
        pods
    }

    /// Detach the guard from one direction, as another program would.
    pub fn detach(&self) -> Result<()> {
        let links = fs::read_dir(Path::new(&self.place[1]).join("links"))?.flatten();
        let egress = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().contains("-out-");
        let link = links.into_iter().find(egress).context("no link of egress is pinned")?;
        fs::remove_file(link.path()).with_context(|| link.path().display().to_string())
    }

    /// Kill the server's process under the guard.
    pub fn kill_the_servers_process(&self) -> Result<()> {
        let mut children = String::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.guard.pid()))? {
            children += &fs::read_to_string(thread?.path().join("children"))?;
        }
        let child = children.split_whitespace().next().context("the guard has no child")?;
        Ok(kill(Pid::from_raw(child.parse()?), Signal::SIGKILL)?)
    }

    /// Return the status from the pins, available even when the daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        let mut status = Command::new(PROGRAM);
        status.args(["--control-socket=/nobody-listens-here", "status", "-o", "json"]);
        status.args(&self.place[..2]);
        Ok(serde_json::from_str(&files::run(status)?)?)
    }

    /// Throttle client number `n` by hand.
    pub fn throttle(&self, n: u8) -> Result<()> {
        let mut throttle = Command::new(PROGRAM);
        throttle.arg("throttle").arg(Family::V4.client(n).to_string()).args(&self.place);
        files::run(throttle).map(drop)
    }

    /// Return the server's connections, including those that ended.
    pub fn connections(&self) -> Result<Value> {
        let mut connections = Command::new(PROGRAM);
        connections.args(["connections", "--all", "-o", "json"]).args(&self.place);
        Ok(serde_json::from_str(&files::run(connections)?)?)
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
        // A daemon stopped by a test would receive no other signal.
        let _ = self.guard.signal(Signal::SIGCONT);
        let ended = self.guard.terminate();
        let mut unload = self.pair.server.command(PROGRAM);
        unload.args(&self.place).args(["unload", "--if-loaded"]);
        let unloaded = files::run(unload);
        for error in [ended.err(), unloaded.err()].into_iter().flatten() {
            eprintln!("cleaning up: {error:#}");
        }
    }
}
