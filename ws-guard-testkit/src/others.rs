//! Protocols other than WebSocket, between Node's servers and clients.
//!
//! The client sends a body, waits for its return, and sends the next one, on one connection:
//! HTTP/1.1 with keep-alive, HTTP/2 with prior knowledge, and bytes in TLS records (TLS 1.2).
use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{netns::Namespace, process::Process, tools};

const WAIT: Duration = Duration::from_secs(20);
/// Milliseconds between two bodies.
const PAUSE: &str = "20";

/// Protocol of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Http2,
    Tls,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Http, Protocol::Http2, Protocol::Tls];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Tls => "tls",
        }
    }

    fn node(self, namespace: &Namespace, role: &str) -> Command {
        let mut command = namespace.command("node");
        command.arg(tools::foreign().join("others.cjs")).args([role, self.name()]);
        command
    }

    /// Start a server that returns what it receives.
    pub fn serve(self, namespace: &Namespace, port: u16) -> Result<Process> {
        let mut command = self.node(namespace, "serve");
        command.arg(port.to_string());
        let server = Process::spawn(self.name(), command)?;
        server.wait_for(WAIT, |line| line.contains("listening").then_some(()))?;
        Ok(server)
    }

    /// Start a client that runs until it is ended.
    pub fn talk(self, namespace: &Namespace, server: SocketAddr) -> Result<Talk> {
        let mut command = self.node(namespace, "ask");
        command.args([server.ip().to_string(), server.port().to_string(), PAUSE.into()]);
        Ok(Talk(Process::spawn(self.name(), command)?))
    }
}

/// Running client.
pub struct Talk(Process);

impl Talk {
    /// Wait for this number of further bodies.
    ///
    /// # Errors
    /// If they do not arrive in 20 s, or one came back changed.
    pub fn goes_on(&self, bodies: usize) -> Result<()> {
        let seen = self.0.lines().len();
        let mut come = 0;
        self.0
            .wait_for(WAIT, |line| {
                come += usize::from(line.contains("echoed"));
                (come >= seen + bodies).then_some(())
            })
            .context("waiting for bodies")?;
        let lines = self.0.lines();
        let changed = lines.iter().find(|line| !line.contains("\"intact\":true"));
        ensure!(changed.is_none(), "a body came back changed: {changed:?}");
        Ok(())
    }
}
