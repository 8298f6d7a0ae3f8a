//! A server, a guard in front of it, and the guard's reports.
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use ws_guard_testkit::{
    client::{Client, ConnectOptions},
    leftovers::{Footprint, hooks},
    netns::{Family, INTERFACE, Pair, PairOptions},
    process::Process,
    programs::OBJECT_VARIABLE,
    servers::{Library, Server, Totals},
};

pub const PORT: u16 = 9001;
/// Address of the daemon's metrics, inside the server's namespace.
const METRICS: &str = "127.0.0.1:9464";
/// Time limit until the programs are attached: the verifier takes its time.
const START: Duration = Duration::from_secs(40);

/// Monotonic figures, by name.
pub type Figures = BTreeMap<String, u64>;

/// Everything for one test. End it with [`Stage::finish`].
pub struct Stage {
    pub server: Option<Server>,
    daemon: Option<Process>,
    place: [String; 4],
    pin_dir: PathBuf,
    socket: PathBuf,
    options: Vec<String>,
    /// Kernel programs for the next daemon, unless its own.
    pub object: Option<PathBuf>,
    footprint: Footprint,
    hooks: String,
    pub pair: Pair,
}

impl Stage {
    /// Start a guard with `options` of `run`, in front of a server.
    pub fn new(clients: u8, options: &[&str]) -> Result<Stage> {
        let mut stage = Stage::unguarded(clients, options)?;
        stage.start()?;
        Ok(stage)
    }

    /// Start the server alone, and prepare a guard for [`Stage::start`].
    pub fn unguarded(clients: u8, options: &[&str]) -> Result<Stage> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wsg-res-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pair = Pair::new(PairOptions { clients, ..PairOptions::default() })?;
        let server = Server::start(&pair.server, Library::TokioTungstenite, PORT, None)?;
        let pin_dir = PathBuf::from("/sys/fs/bpf").join(&name);
        let socket = std::env::temp_dir().join(format!("{name}.sock"));
        let text = |path: &PathBuf| path.display().to_string();
        let place = ["--pin-dir".into(), text(&pin_dir), "--control-socket".into(), text(&socket)];
        let mut stage = Stage {
            server: Some(server),
            daemon: None,
            place,
            footprint: Footprint::default(),
            hooks: hooks(&pair.server, INTERFACE)?,
            options: options.iter().map(ToString::to_string).collect(),
            object: None,
            pin_dir,
            socket,
            pair,
        };
        stage.footprint.add_path(&stage.pin_dir.clone());
        stage.footprint.add_path(&stage.socket.clone());
        Ok(stage)
    }

    /// Start the daemon and wait until it is attached.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_attached()
    }

    /// Start the daemon.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = self.pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
        command.args(&self.place).args(["run", "--interface", INTERFACE]);
        command.args(["--metrics-listen", METRICS]);
        if !self.options.iter().any(|option| option == "--port") {
            command.args(["--port", &PORT.to_string()]);
        }
        command.arg("--state-file").arg(self.state_file());
        command.args(&self.options);
        if let Some(object) = &self.object {
            command.env(OBJECT_VARIABLE, object);
        }
        self.daemon = Some(Process::spawn("ws-guard run", command)?);
        Ok(())
    }

    pub fn pin_dir(&self) -> &std::path::Path {
        &self.pin_dir
    }

    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Return the file in which the daemon keeps operators' decisions.
    pub fn state_file(&self) -> PathBuf {
        self.socket.with_extension("state.json")
    }

    /// Wait until a running daemon reports that it is attached, in both directions.
    pub fn wait_attached(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let status = self.ask("status");
            let daemon = self.daemon.as_mut().context("no daemon")?;
            let error = match status {
                Ok(status) if status["pid"] == daemon.pid() && attached(&status) => break,
                Ok(status) => anyhow::anyhow!("it is not attached: {status}"),
                Err(error) => error,
            };
            ensure!(
                daemon.ended()?.is_none() && Instant::now() < deadline,
                "ws-guard did not attach: {error:#}\nit said:\n{}",
                daemon.lines().join("\n")
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.note_footprint()
    }

    fn note_footprint(&mut self) -> Result<()> {
        let pid = self.daemon.as_ref().context("no daemon")?.pid();
        self.footprint.add_process(pid)?;
        self.footprint.add_pins(&self.pin_dir)
    }

    /// Send SIGKILL, and wait for its end.
    pub fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon")?;
        daemon.signal(Signal::SIGKILL)?;
        while daemon.ended()?.is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Send SIGTERM: protection stays.
    pub fn terminate(&mut self) -> Result<()> {
        let status = self.daemon.take().context("no daemon")?.terminate()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Run a command of the CLI; return its output.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        cli(&self.place, words)
    }

    /// Return a listing as JSON: from the daemon, or from the pins while it is down.
    pub fn ask(&self, subcommand: &str) -> Result<Value> {
        self.asker().ask(subcommand)
    }

    /// Return the events that the daemon keeps.
    pub fn events(&self) -> Result<Vec<Value>> {
        let said = self.cli(&["events", "-o", "json"])?;
        let events = serde_json::Deserializer::from_str(&said).into_iter();
        events.collect::<Result<_, _>>().context("a line of JSON an event")
    }

    /// Return the policy in force.
    pub fn policy(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli(&["policy", "get", "-o", "json"])?)?)
    }

    /// Return the daemon's log so far.
    pub fn log(&self) -> Vec<String> {
        self.daemon.as_ref().map(Process::lines).unwrap_or_default()
    }

    /// Return a handle for queries in the background, while the daemon comes and goes.
    pub fn asker(&self) -> Asker {
        Asker { place: self.place.clone() }
    }

    /// Connect client number `n`, IPv4.
    pub fn connect(&self, n: u8) -> Result<Client> {
        let options =
            ConnectOptions { source: Some(Family::V4.client(n)), ..ConnectOptions::default() };
        Client::connect(&self.pair.client, self.address(), options)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(Family::V4.server(), PORT)
    }

    /// Return the row of a source in `sources`.
    pub fn source(&self, address: IpAddr) -> Result<Value> {
        row(&self.ask("sources")?, "source", &address.to_string())
            .with_context(|| format!("`sources` does not have {address}"))
    }

    /// Return the row of a connection in `flows`.
    pub fn flow(&self, client: SocketAddr) -> Result<Value> {
        row(&self.ask("flows")?, "client", &client.to_string())
            .with_context(|| format!("`flows` does not have {client}"))
    }

    /// Return the samples of the metrics page that count events, by name and labels.
    pub fn metrics(&self) -> Result<Figures> {
        let text = self.pair.server.run(|| -> Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            // The server closes the connection after its answer to a client of this version.
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let text = text.with_context(|| format!("asking {METRICS} for metrics"))?;
        let counts = |line: &&str| line.starts_with("wsguard_") && line.contains("_total");
        let mut figures = Figures::new();
        for line in text.lines().filter(counts) {
            let (name, value) = line.rsplit_once(' ').context("a sample has a value")?;
            figures.insert(name.to_owned(), value.parse::<f64>()? as u64);
        }
        ensure!(figures.len() > 20, "only {} counters", figures.len());
        Ok(figures)
    }

    /// Stop the server; return its counts.
    pub fn stop_server(&mut self) -> Result<Totals> {
        self.server.take().context("no server")?.stop()
    }

    /// Unload the guard, and prove that nothing of it is left.
    pub fn finish(mut self) -> Result<()> {
        if self.daemon.is_some() {
            self.terminate()?;
        }
        let [programs, maps, links] = self.footprint.counts();
        ensure!(programs > 0 && maps > 0 && links > 0, "nothing to look for");
        self.unload()?;
        // A killed daemon could not remove its socket, a later one has.
        self.footprint.assert_gone()?;
        let now = hooks(&self.pair.server, INTERFACE)?;
        ensure!(now == self.hooks, "{INTERFACE} was\n{}\nand is\n{now}", self.hooks);
        let names = [self.pair.client.path(), self.pair.server.path()];
        drop(self);
        for path in names {
            ensure!(!path.exists(), "{} is left behind", path.display());
        }
        Ok(())
    }

    /// Run `ws-guard unload` in the interface's namespace.
    pub fn unload(&self) -> Result<()> {
        let mut command = self.pair.server.command(env!("CARGO_BIN_EXE_ws-guard"));
        finished(command.args(&self.place).arg("unload")).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.daemon.take());
        if self.pin_dir.exists()
            && let Err(error) = self.unload()
        {
            eprintln!("cleaning up: {error:#}");
        }
        // Left by a daemon that was killed and not started again.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(self.state_file());
    }
}

/// Reader of one guard's listings, on any thread.
pub struct Asker {
    place: [String; 4],
}

impl Asker {
    pub fn ask(&self, subcommand: &str) -> Result<Value> {
        let text = cli(&self.place, &[subcommand, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("`{subcommand}` printed {text:?}"))
    }
}

fn cli(place: &[String; 4], words: &[&str]) -> Result<String> {
    finished(Command::new(env!("CARGO_BIN_EXE_ws-guard")).args(place).args(words))
}

fn finished(command: &mut Command) -> Result<String> {
    let output = command.output().context("running ws-guard")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?} failed: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn attached(status: &Value) -> bool {
    let interface = &status["interfaces"][0];
    interface["ingress"].is_string() && interface["egress"].is_string()
}

fn row(rows: &Value, field: &str, wanted: &str) -> Option<Value> {
    rows.as_array()?.iter().find(|row| row[field] == wanted).cloned()
}

/// Return a number in JSON.
pub fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is not a whole number"))
}

/// Wait until `done` returns true.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    while !done()? {
        ensure!(Instant::now() < until, "{what}: not within 10 s");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
