//! Servers of the benchmark, each on a separate CPU.
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use ws_guard_testkit::{
    certificate,
    netns::Namespace,
    process::Process,
    servers::{Library, Server},
    tools,
};

use super::case::Target;
use crate::{cpus, guard::Profile};

/// Time limit for a server to listen.
const START: Duration = Duration::from_secs(20);

/// A listening server.
pub enum Serving {
    Foreign(Server),
    Other { process: Process, _certificate: Option<TempDir> },
}

impl Target {
    pub fn library(self) -> Option<Library> {
        match self {
            Target::Foreign(library) => Some(library),
            Target::PythonTls => Some(Library::Python),
            Target::Companion | Target::CompanionTls => None,
        }
    }

    /// Start it on `cpu` at `port`;
    /// `limit` bounds the bytes of its data segment where it would grow.
    pub fn start(
        self,
        namespace: &Namespace,
        port: u16,
        limit: u64,
        cpu: usize,
    ) -> Result<Serving> {
        if let Target::Foreign(library) = self {
            let start = || Server::start(namespace, library, port, Some(limit));
            return cpus::start_on(cpu, start).map(Serving::Foreign);
        }
        let folder = self.is_tls().then(tempfile::tempdir).transpose()?;
        let certificate = folder.as_ref().map(|dir| certificate::make(dir.path())).transpose()?;
        let mut command = match self {
            Target::PythonTls => {
                let mut command = namespace.command(tools::python());
                command.arg(tools::foreign().join("wss_echo.py")).arg(port.to_string());
                command.args(certificate.iter().flatten()).args(["1.3", "-"]);
                command
            }
            _ => {
                let mut command = namespace.command(Profile::Release.program());
                command.args(["serve", "--shards", "1", "--listen", &format!("0.0.0.0:{port}")]);
                command.args(["--access-log", "/dev/null"]);
                if let Some([cert, key]) = &certificate {
                    command.args(["--tls-certificate", cert, "--tls-key", key]);
                }
                command
            }
        };
        command.env("RUST_LOG", "info");
        let process = cpus::start_on(cpu, || Process::spawn(self.name(), command))?;
        process.wait_for(START, |line| {
            (line == "listening" || line.contains("serving WebSocket connections")).then_some(())
        })?;
        Ok(Serving::Other { process, _certificate: folder })
    }
}

impl Serving {
    pub fn pid(&self) -> u32 {
        match self {
            Serving::Foreign(server) => server.pid(),
            Serving::Other { process, .. } => process.pid(),
        }
    }
}
