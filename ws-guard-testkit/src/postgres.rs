//! Debian's PostgreSQL, without a service: on a socket, for as long as needed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{process::Process, tools, wait::wait_for};

/// Maximum time to create a database, and to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Server that ends when it is dropped.
pub struct Postgres {
    /// URL for its clients.
    pub url: String,
    server: Process,
    /// Folder of its socket, with a short path: the length of a socket's is limited.
    sockets: TempDir,
}

impl Postgres {
    /// Start it with its files in this folder, which becomes a database if it is none.
    pub fn start(files: &Path) -> Result<Postgres> {
        fs::create_dir_all(files).with_context(|| files.display().to_string())?;
        if !files.join("PG_VERSION").exists() {
            let mut init = as_other("initdb");
            init.args(["--username=chaos", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
            init.arg("--pgdata").arg(files);
            let output = init.output().context("running initdb")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "initdb ended with {}: {said}", output.status);
        }
        let sockets = TempDir::with_prefix("wsg-postgres-")?;
        let mut command = as_other("postgres");
        command.arg("-D").arg(files).arg("-k").arg(sockets.path());
        command.args(["-c", "listen_addresses=", "-c", "log_min_messages=warning"]);
        // It has little to do, and shall use little.
        command.args(["-c", "shared_buffers=16MB", "-c", "max_connections=10"]);
        let server = Process::spawn("PostgreSQL", command)?;
        let url = format!("host={} user=chaos dbname=postgres", sockets.path().display());
        let postgres = Postgres { url, server, sockets };
        let there = wait_for(PATIENCE, || postgres.answers());
        let said = || postgres.server.lines().join("\n");
        ensure!(there.is_some(), "PostgreSQL does not start; it said:\n{}", said());
        Ok(postgres)
    }

    fn answers(&self) -> Option<()> {
        let mut ask = Command::new(tools::postgres().join("pg_isready"));
        ask.arg("-q").arg("-h").arg(self.sockets.path()).stdin(Stdio::null());
        ask.status().ok()?.success().then_some(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown: SIGTERM would wait for sessions.
        let _ = self.server.signal(Signal::SIGINT);
        let _ = self.server.terminate();
    }
}

/// Return the command for a program of PostgreSQL, which refuses to run as root.
/// It runs as another user in a user namespace, which still has root's access to files.
fn as_other(name: &str) -> Command {
    let program = tools::postgres().join(name);
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]).arg(program);
    command
}
