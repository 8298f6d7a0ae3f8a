//! PostgreSQL for the runs of this workspace: Debian's, started for as long as it is needed.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use ws_guard_testkit::process::Process;

use crate::{setup, step};

const START: Duration = Duration::from_secs(60);

/// A database that can be reached; one that was started here ends when it is dropped.
pub struct Database {
    pub url: String,
    _own: Option<Own>,
}

struct Own {
    server: Process,
    /// Its socket: a short path, since a socket's may not be long.
    _sockets: TempDir,
}

impl Database {
    /// The one of this URL, or one of our own with its files in `home`.
    pub fn open(url: Option<&str>, home: &Path) -> Result<Database> {
        if let Some(url) = url {
            return Ok(Database { url: url.to_owned(), _own: None });
        }
        let programs = setup::postgres()?;
        let files = home.join("postgres");
        if !files.join("PG_VERSION").exists() {
            fs::create_dir_all(&files).with_context(|| files.display().to_string())?;
            let mut init = as_other(&programs, "initdb");
            init.args(["--username=chaos", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
            init.arg("--pgdata").arg(&files);
            step::run("making a database", init)?;
        }
        let sockets = TempDir::with_prefix("wsg-chaos-")?;
        let mut command = as_other(&programs, "postgres");
        command.arg("-D").arg(&files).arg("-k").arg(sockets.path());
        command.args(["-c", "listen_addresses=", "-c", "log_min_messages=warning"]);
        // It has little to do, and shall take little.
        command.args(["-c", "shared_buffers=16MB", "-c", "max_connections=10"]);
        let server = Process::spawn("PostgreSQL", command)?;
        let url = format!("host={} user=chaos dbname=postgres", sockets.path().display());
        let database = Database { url, _own: Some(Own { server, _sockets: sockets }) };
        database.wait(&programs)?;
        Ok(database)
    }

    fn wait(&self, programs: &Path) -> Result<()> {
        let Some(own) = &self._own else { return Ok(()) };
        let place = own._sockets.path().display().to_string();
        let ready = programs.join("pg_isready").display().to_string();
        let there = || step::output(&ready, &["-q", "-h", &place]);
        let found = ws_guard_testkit::wait::wait_for(START, there);
        ensure!(
            found.is_some(),
            "PostgreSQL does not start; it said:\n{}",
            own.server.lines().join("\n")
        );
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A fast shutdown: SIGTERM would wait for sessions.
        let _ = self.server.signal(Signal::SIGINT);
        let _ = self.server.terminate();
    }
}

/// A program of PostgreSQL, which refuses to run as root: as another user in a user namespace, which
/// has root's files all the same.
fn as_other(programs: &Path, name: &str) -> Command {
    let program: PathBuf = programs.join(name);
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]).arg(program);
    command
}
