//! A daemon in a node's namespace, and its reports.
use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use ws_guard_testkit::{netns::Namespace, process::Process};

pub const PORT: u16 = 9001;
/// Time limit for loading and attaching: the verifier reads every program.
const START: Duration = Duration::from_secs(60);
/// Time limit for expected events on a busy machine.
const WAIT: Duration = Duration::from_secs(30);

/// A daemon with its own pin directory and control socket; unloaded when dropped.
pub struct Guard {
    daemon: Option<Process>,
    namespace: PathBuf,
    words: String,
    pub pin_dir: PathBuf,
    socket: PathBuf,
}

impl Guard {
    /// Start it with these arguments of `run`, and wait until it is ready.
    pub fn start(namespace: &Namespace, words: &str) -> Result<Guard> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wsg-attach-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let mut guard = Guard {
            daemon: None,
            namespace: namespace.path(),
            words: words.to_owned(),
            pin_dir: PathBuf::from("/sys/fs/bpf").join(&name),
            socket: std::env::temp_dir().join(format!("{name}.sock")),
        };
        guard.restart()?;
        Ok(guard)
    }

    /// Start it once more, after [`Guard::stop`].
    pub fn restart(&mut self) -> Result<()> {
        let size = "--max-flows 1024 --max-sources 1024";
        let port = format!("--port {PORT} --connection-share 0");
        let command = self.command(&format!("run {} {port} {size}", self.words));
        let daemon = Process::spawn("ws-guard run", command)?;
        daemon.wait_for(START, |line| line.contains(" started ").then_some(()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stop it with SIGTERM; protection stays.
    pub fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon")?;
        let status = daemon.terminate()?;
        ensure!(status.success(), "{status}: {}", daemon.lines().join("\n"));
        Ok(())
    }

    /// Replace the arguments for the next start.
    pub fn set_words(&mut self, words: &str) {
        self.words = words.to_owned();
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon.as_ref().context("no daemon")?.signal(signal)
    }

    /// Return the daemon's log.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(|daemon| daemon.lines().join("\n")).unwrap_or_default()
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.display())).arg("--");
        command.arg(env!("CARGO_BIN_EXE_ws-guard")).args(self.place());
        command.args(words.split_whitespace());
        command
    }

    fn place(&self) -> [std::ffi::OsString; 4] {
        [
            "--pin-dir".into(),
            self.pin_dir.clone().into(),
            "--control-socket".into(),
            self.socket.clone().into(),
        ]
    }

    /// Run a subcommand outside of the node's namespace.
    pub fn outside(&self, words: &str) -> Result<Output> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(self.place()).args(words.split_whitespace()).output().context("ws-guard")
    }

    /// Return the output of a subcommand with `-o json`.
    pub fn ask(&self, words: &str) -> Result<Value> {
        let output = self.command(&format!("{words} -o json")).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`ws-guard {words}` failed: {}", said.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Return the row of an interface in `status`.
    pub fn interface(&self, name: &str) -> Result<Option<Value>> {
        let status = self.ask("status")?;
        let rows = status["interfaces"].as_array().context("interfaces")?;
        Ok(rows.iter().find(|row| row["name"] == name).cloned())
    }

    /// Return the number of interfaces attached on both sides.
    pub fn attached(&self) -> Result<usize> {
        let status = self.ask("status")?;
        let rows = status["interfaces"].as_array().context("interfaces")?;
        let both = |row: &&Value| row["ingress"].is_string() && row["egress"].is_string();
        Ok(rows.iter().filter(both).count())
    }

    /// Return the names of the pins of attachments.
    pub fn pins(&self) -> Vec<String> {
        let dirs = ["links", "filters"].map(|dir| fs::read_dir(self.pin_dir.join(dir)));
        let entries = dirs.into_iter().flatten().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// End the daemon, unload, and check that no pin is left.
    pub fn finish(mut self) -> Result<()> {
        self.stop()?;
        let output = self.command("unload").output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "unload failed: {}", said.trim());
        ensure!(!self.pin_dir.exists(), "{} is left behind", self.pin_dir.display());
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            eprintln!("ws-guard run said:\n{}", daemon.lines().join("\n"));
            let _ = daemon.terminate();
        }
        if self.pin_dir.exists() {
            let _ = self.command("unload").output();
        }
        let _ = fs::remove_file(&self.socket);
    }
}

/// Wait until `done` returns true.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {WAIT:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
