//! The processes of the clients: those in Rust with the flooder, and those of the browser client.
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use ws_guard_testkit::{netns::Family, process::Process, tools};

use super::topology::{ADDRESSES, Fleet, front};
use crate::interrupt;

/// For all clients to be there, and for all that is on its way to arrive.
const BEGIN: Duration = Duration::from_secs(180);
const SETTLE: Duration = Duration::from_secs(90);

/// How many clients, and what they do.
#[derive(clap::Args, Clone)]
pub struct Load {
    /// Clients, besides those of the browser client
    #[arg(long, value_name = "N", default_value_t = 2000)]
    clients: usize,
    /// Browser clients, under Node
    #[arg(long, value_name = "N", default_value_t = 50)]
    browser_clients: usize,
    /// Topics, of which each client follows one
    #[arg(long, value_name = "N", default_value_t = 400)]
    topics: usize,
    /// Publications a second, of all clients together
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    rate: f64,
}

/// The program with clients, checker and store.
pub fn program() -> PathBuf {
    tools::target().join("release/ws-guard-chaos")
}

/// All clients of a run.
pub struct Clients {
    processes: Vec<Process>,
}

impl Clients {
    /// Start them in the namespace of clients, and wait until all follow their topics.
    pub fn start(fleet: &Fleet, folder: &Path, load: &Load, seed: u64) -> Result<Clients> {
        let namespace = &fleet.path.pair.client;
        let addresses: Vec<String> =
            (0..ADDRESSES).map(|number| Family::V4.client(number).to_string()).collect();
        let addresses = addresses.join(",");
        let common = |command: &mut Command, name: &str| {
            command.args(["--server", &front().to_string(), "--from", &addresses]);
            command.arg("--ca").arg(Fleet::certificate(folder));
            command.args(["--topics", &load.topics.to_string(), "--seed", &seed.to_string()]);
            command.arg("--log").arg(folder.join(format!("{name}.clients.jsonl")));
        };
        let mut command = namespace.command(program());
        command.args(["clients", "--flooder", "--clients", &load.clients.to_string()]);
        // Those of the browser publish at the same pace each.
        let all = (load.clients + load.browser_clients) as f64;
        let rate = |clients: usize| (load.rate * clients as f64 / all).to_string();
        command.args(["--rate", &rate(load.clients)]);
        common(&mut command, "rust");
        let mut processes = vec![Process::spawn("the clients", command)?];
        if load.browser_clients > 0 {
            let mut command = namespace.command("node");
            command.arg(tools::workspace().join("ws-guard-chaos/node/clients.mjs"));
            command.args(["--clients", &load.browser_clients.to_string()]);
            command.args(["--rate", &rate(load.browser_clients)]);
            common(&mut command, "browser");
            processes.push(Process::spawn("the browser clients", command)?);
        }
        let clients = Clients { processes };
        clients.say("ready", BEGIN)?;
        Ok(clients)
    }

    /// Wait until all have said this; an interruption ends the wait.
    fn say(&self, word: &str, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        for process in &self.processes {
            while !process.lines().iter().any(|line| line == word) {
                interrupt::check()?;
                let left = end.saturating_duration_since(Instant::now());
                let step = left.min(Duration::from_millis(500));
                let said = process.wait_for(step, |line| (line == word).then_some(()));
                if let Err(error) = said
                    && left <= step
                {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether they run; a client that has ended has said why.
    pub fn check(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended()? {
                let lines = process.lines();
                let said = lines[lines.len().saturating_sub(10)..].join("\n");
                anyhow::bail!("clients have ended early ({status}):\n{said}");
            }
        }
        Ok(())
    }

    /// Let them publish no more, wait until what was published has arrived, and end them.
    pub fn finish(&mut self) -> Result<()> {
        for process in &self.processes {
            process.signal(Signal::SIGUSR2)?;
        }
        if let Err(error) = self.say("quiet", SETTLE) {
            // The checker finds out what is missing.
            interrupt::check()?;
            eprintln!("  not all has arrived in time: {error:#}");
        }
        for process in &mut self.processes {
            process.terminate().context("ending the clients")?;
        }
        Ok(())
    }
}
