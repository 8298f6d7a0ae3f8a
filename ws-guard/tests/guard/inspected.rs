//! `ws-guard inspect` on an interface during a test.
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use ws_guard_testkit::{netns::Namespace, process::Process};

/// Time limit for listening, and for ending.
const WAIT: Duration = Duration::from_secs(20);

/// A running inspector.
pub struct Inspecting(Process);

impl Inspecting {
    /// Start it, and wait until it listens.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Inspecting> {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_ws-guard"));
        // It ends even if the test fails.
        command.args(["inspect", "--interface", interface, "-o", "jsonl", "--seconds", "120"]);
        let process = Process::spawn("ws-guard inspect", command)?;
        process.wait_for(WAIT, |line| line.starts_with("listening on ").then_some(()))?;
        Ok(Inspecting(process))
    }

    /// End it; return its report of the only WebSocket connection.
    pub fn end(mut self) -> Result<Value> {
        self.0.signal(Signal::SIGINT)?;
        let totals = |line: &str| line.contains("\"kind\":\"totals\"").then_some(());
        self.0.wait_for(WAIT, totals)?;
        self.0.terminate()?;
        let lines = self.0.lines();
        let flow = lines.iter().rfind(|line| line.contains("\"kind\":\"flow\""));
        Ok(serde_json::from_str(flow.context("the inspector saw no connection")?)?)
    }
}
