//! `ws-guard run` in a namespace, and its reports.
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use ws_guard_testkit::{netns::Namespace, process::Process, tools};

use crate::step;

/// Time limit until the programs are attached.
const START: Duration = Duration::from_secs(60);

/// Build profile. The kernel programs are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Compiled faster: for work that only the kernel programs do.
    Dev,
    /// Compiled as for users.
    Release,
}

impl Profile {
    pub fn build(self) -> Result<()> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--package", "ws-guard"]).current_dir(tools::workspace());
        if self == Profile::Release {
            cargo.arg("--release");
        }
        step::run("building ws-guard", cargo)
    }

    pub fn program(self) -> PathBuf {
        let folder = if self == Profile::Release { "release" } else { "debug" };
        tools::target().join(folder).join("ws-guard")
    }
}

/// A guard with separate pins and a separate socket; unloaded when dropped.
pub struct Guard {
    program: PathBuf,
    process: Process,
    /// Command line of the daemon.
    start: Vec<String>,
    namespace: String,
    /// Arguments by which the CLI finds it.
    place: [String; 4],
    socket: PathBuf,
    unloaded: bool,
}

impl Guard {
    /// Start it in `namespace` with these arguments; wait until it is attached.
    pub fn start(profile: Profile, namespace: &Namespace, words: &str) -> Result<Guard> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ws-guard-xtask-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let socket = std::env::temp_dir().join(format!("{name}.sock"));
        let place = [
            "--pin-dir".to_owned(),
            format!("/sys/fs/bpf/{name}"),
            "--control-socket".to_owned(),
            socket.display().to_string(),
        ];
        let program = profile.program();
        let mut start: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        // Decisions of an earlier daemon must not apply to this one.
        let state = socket.with_extension("state.json").display().to_string();
        start.extend(["--state-file".to_owned(), state]);
        let process = daemon(&program, namespace, &place, &start)?;
        let namespace = namespace.name().to_owned();
        let mut guard =
            Guard { program, process, start, namespace, place, socket, unloaded: false };
        guard.wait_attached()?;
        Ok(guard)
    }

    /// End the daemon, with SIGKILL or in order; the kernel programs stay.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        self.process.terminate().map(drop)
    }

    /// Start the daemon again, which takes over from the pins.
    pub fn again(&mut self) -> Result<()> {
        let namespace = Namespace::borrow(&self.namespace);
        self.process = daemon(&self.program, &namespace, &self.place, &self.start)?;
        self.wait_attached()
    }

    /// Return the command line that reaches this guard, for a person to type.
    pub fn shown(&self) -> String {
        format!("{} {}", self.program.display(), self.place.join(" "))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Return the directory of its tables.
    pub fn pin_dir(&self) -> &Path {
        Path::new(&self.place[1])
    }

    /// Return the command that reaches it, without a subcommand.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.place);
        command
    }

    /// Return its attach modes, as `status` shows them.
    pub fn modes(&self) -> Result<String> {
        let status = self.ask("status")?;
        let interface = &status["interfaces"][0];
        let mode = |side: &str| interface[side].as_str().unwrap_or("-").to_owned();
        Ok(format!("{} in, {} out", mode("ingress"), mode("egress")))
    }

    /// End the daemon and remove its programs and pins.
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

    /// Return the output of a subcommand with `-o json`.
    pub fn ask(&self, subcommand: &str) -> Result<Value> {
        serde_json::from_slice(&self.tell(&[subcommand, "-o", "json"])?)
            .with_context(|| format!("`ws-guard {subcommand} -o json` is not JSON"))
    }

    /// Run the command line with these arguments; return its output.
    pub fn tell(&self, words: &[&str]) -> Result<Vec<u8>> {
        let output = self.command().args(words).output().context("running ws-guard")?;
        ensure!(
            output.status.success(),
            "`ws-guard {}` failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    }

    fn remove(&mut self) -> Result<()> {
        self.process.terminate()?;
        let output = Command::new(&self.program).args(&self.place).arg("unload").output();
        // The socket belongs to the daemon; this is for one that was killed.
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("state.json"));
        let output = output.context("running ws-guard unload")?;
        ensure!(
            output.status.success(),
            "`ws-guard unload` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

/// Build the command of `ws-guard run` in this namespace.
fn daemon(
    program: &Path,
    namespace: &Namespace,
    place: &[String; 4],
    words: &[String],
) -> Result<Process> {
    let mut command = namespace.command(program);
    command.args(place).arg("run").args(words);
    Process::spawn("ws-guard run", command)
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
