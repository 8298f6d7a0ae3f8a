//! `ws-guard run`, and the command line that queries it.
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    maps::MapInfo,
    programs::{loaded_links, loaded_programs},
};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use ws_guard_testkit::{
    netns::{INTERFACE, Namespace},
    process::Process,
};

/// Time limit for loading and attaching: the verifier reads every program.
const START: Duration = Duration::from_secs(60);
/// Time limit for the kernel to free objects without a holder.
const FREE: Duration = Duration::from_secs(10);

/// A daemon with its own pin directory and control socket; unloaded when dropped.
pub struct Guard {
    daemon: Mutex<Process>,
    /// Held by a restart: queries meanwhile wait for its end.
    restarting: RwLock<()>,
    /// Arguments of `run`.
    words: Vec<String>,
    namespace: PathBuf,
    pin_dir: PathBuf,
    socket: PathBuf,
    gone: bool,
}

impl Guard {
    /// Start it inside `namespace` with these arguments, and wait until it is attached.
    #[allow(dead_code, reason = "not every test target that has this file does")]
    pub fn start(namespace: &Namespace, words: &str) -> Result<Guard> {
        Guard::start_at(namespace, &["--interface", INTERFACE], words)
    }

    /// As [`Guard::start`], at other interfaces.
    pub fn start_at(namespace: &Namespace, interfaces: &[&str], words: &str) -> Result<Guard> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wsg-guard-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/{name}"));
        let socket = std::env::temp_dir().join(format!("{name}.sock"));
        let mut run = vec!["run"];
        run.extend(interfaces);
        run.extend(words.split_whitespace());
        for size in ["--max-flows", "--max-sources"] {
            if !run.contains(&size) {
                run.extend([size, "1024"]);
            }
        }
        let words: Vec<String> = run.into_iter().map(str::to_owned).collect();
        let mut command = namespace.command(env!("CARGO_BIN_EXE_ws-guard"));
        command.arg("--pin-dir").arg(&pin_dir).arg("--control-socket").arg(&socket).args(&words);
        let daemon = Mutex::new(Process::spawn("ws-guard run", command)?);
        let namespace = namespace.path();
        let restarting = RwLock::default();
        let guard = Guard { daemon, restarting, words, namespace, pin_dir, socket, gone: false };
        guard.wait_attached()?;
        Ok(guard)
    }

    fn daemon(&self) -> MutexGuard<'_, Process> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kill the daemon, and start another one on its pins.
    #[allow(dead_code, reason = "not every test target that has this file does")]
    pub fn restart(&self) -> Result<()> {
        let _nobody_asks = self.restarting.write().unwrap_or_else(PoisonError::into_inner);
        let mut command = self.command();
        command.args(&self.words);
        let mut daemon = self.daemon();
        daemon.signal(Signal::SIGKILL)?;
        while daemon.ended()?.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        *daemon = Process::spawn("ws-guard run", command)?;
        drop(daemon);
        self.wait_attached()
    }

    /// Kill the daemon, as the OOM killer does; its pins stay.
    #[allow(dead_code, reason = "not every test target that has this file does")]
    pub fn kill(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.signal(Signal::SIGKILL)?;
        while daemon.ended()?.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        fs::remove_file(&self.socket).context("the killed daemon's socket")
    }

    #[allow(dead_code, reason = "not every test target that has this file asks")]
    pub fn pid(&self) -> u32 {
        self.daemon().pid()
    }

    fn wait_attached(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        let pid = self.daemon().pid();
        loop {
            let error = match self.status() {
                Ok(status) if status["pid"] == pid && attached(&status) => return Ok(()),
                Ok(status) => anyhow::anyhow!("it is not attached: {status}"),
                Err(error) => error,
            };
            let mut daemon = self.daemon();
            if daemon.ended()?.is_some() || Instant::now() > deadline {
                let said = daemon.lines().join("\n");
                bail!("ws-guard did not start: {error:#}\nit said:\n{said}");
            }
            drop(daemon);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Run a subcommand, with its arguments separated by spaces, in the namespace:
    /// its interfaces exist nowhere else.
    pub fn run(&self, words: &str) -> Result<Vec<u8>> {
        let _no_restart = self.restarting.read().unwrap_or_else(PoisonError::into_inner);
        self.run_now(words)
    }

    fn run_now(&self, words: &str) -> Result<Vec<u8>> {
        let output = self.command().args(words.split_whitespace()).output();
        let output = output.context("running ws-guard")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`ws-guard {words}` failed: {}", said.trim());
        Ok(output.stdout)
    }

    fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.run_now("status -o json")?)?)
    }

    /// Return a command in the namespace.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.display())).arg("--");
        command.arg(env!("CARGO_BIN_EXE_ws-guard")).arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--control-socket").arg(&self.socket);
        command
    }

    /// Return the output of a subcommand with `-o json`.
    pub fn ask<T: DeserializeOwned>(&self, words: &str) -> Result<T> {
        let said = self.run(&format!("{words} -o json"))?;
        serde_json::from_slice(&said).with_context(|| {
            format!("`ws-guard {words} -o json` said {}", String::from_utf8_lossy(&said))
        })
    }

    /// Return its events.
    #[allow(dead_code, reason = "not every test target that has this file does")]
    pub fn events(&self, words: &str) -> Result<Vec<serde_json::Value>> {
        let said = self.run(&format!("events -o json {words}"))?;
        let events = serde_json::Deserializer::from_slice(&said).into_iter();
        events.collect::<Result<_, _>>().context("a line of JSON an event")
    }

    /// Return its control socket.
    #[allow(dead_code, reason = "the adversary shares this file and has no use for it")]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Return the daemon's log.
    pub fn log(&self) -> String {
        self.daemon().lines().join("\n")
    }

    /// Signal the daemon to end, and do not wait for it.
    #[allow(dead_code, reason = "not every test target that has this file does")]
    pub fn signal_end(&self) -> Result<()> {
        self.daemon().signal(Signal::SIGTERM)
    }

    /// End the daemon, unload, and check that nothing of it is left:
    /// no pin, program, link or socket.
    pub fn finish(mut self) -> Result<()> {
        let programs = self.programs()?;
        ensure!(programs.len() >= 2, "two programs at least hold its maps: {programs:?}");
        ensure!(!links(&programs).is_empty() || self.log().contains("clsact"), "{}", self.log());
        self.gone = true;
        self.remove()?;
        ensure!(!self.pin_dir.exists(), "{} is left behind", self.pin_dir.display());
        ensure!(!self.socket.exists(), "{} is left behind", self.socket.display());
        let deadline = Instant::now() + FREE;
        loop {
            let loaded = |id: &u32| loaded_programs().flatten().any(|info| info.id() == *id);
            let left: Vec<u32> = programs.iter().copied().filter(loaded).collect();
            let links = links(&programs);
            if left.is_empty() && links.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "programs {left:?} and links {links:?} are left");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Return the ids of the programs that use the maps pinned here.
    fn programs(&self) -> Result<Vec<u32>> {
        let entries = fs::read_dir(&self.pin_dir)?.flatten();
        let maps: Vec<u32> =
            entries.filter_map(|entry| Some(MapInfo::from_pin(entry.path()).ok()?.id())).collect();
        let ours = loaded_programs().flatten().filter(|info| {
            let used = info.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|map| maps.contains(map))
        });
        Ok(ours.map(|info| info.id()).collect())
    }

    fn remove(&mut self) -> Result<()> {
        self.daemon().terminate()?;
        let unloaded = self.run("unload");
        // The socket belongs to the daemon; this is for one that did not end by itself.
        if unloaded.is_err() {
            let _ = fs::remove_file(&self.socket);
        }
        unloaded.map(drop)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.gone {
            eprintln!("ws-guard run said:\n{}", self.log());
            if let Err(error) = self.remove() {
                eprintln!("cleaning up: {error:#}");
            }
        }
    }
}

fn attached(status: &serde_json::Value) -> bool {
    status["interfaces"][0]["egress"].is_string()
}

/// Return the ids of the links that hold one of these programs.
fn links(programs: &[u32]) -> Vec<u32> {
    let all = loaded_links().flatten();
    all.filter(|link| programs.contains(&link.program_id())).map(|link| link.id()).collect()
}
