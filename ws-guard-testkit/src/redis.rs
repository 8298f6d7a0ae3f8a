//! Processes of Redis: a server, a node of a cluster, or a Sentinel.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{tools, wait::wait_for};

/// Maximum time to start.
const PATIENCE: Duration = Duration::from_secs(15);

/// Process of Redis that ends when it is dropped.
pub struct Redis {
    child: Option<Child>,
    pub port: u16,
    dir: TempDir,
    arguments: Vec<String>,
}

/// TLS files of a Redis: a certificate, which also verifies others, and its key.
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Tls {
    /// Return the settings for TLS at this port too, and for TLS with other instances.
    fn settings(&self, port: u16) -> [(&'static str, String); 7] {
        let [certificate, key] =
            [&self.certificate, &self.key].map(|file| file.display().to_string());
        [
            ("tls-port", port.to_string()),
            ("tls-cert-file", certificate.clone()),
            ("tls-key-file", key),
            ("tls-ca-cert-file", certificate),
            ("tls-auth-clients", "no".into()),
            ("tls-replication", "yes".into()),
            ("tls-cluster", "yes".into()),
        ]
    }

    /// Return these settings as options.
    pub fn options(&self, port: u16) -> Vec<String> {
        self.settings(port)
            .into_iter()
            .flat_map(|(name, value)| [format!("--{name}"), value])
            .collect()
    }
}

/// Return a port that is free for now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    /// Start a server that keeps nothing on disk, unless the options say so.
    pub fn start(options: &[&str]) -> Redis {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let place = dir.path().display().to_string();
        let port_text = port.to_string();
        let first = ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--dir", &place];
        let arguments = first.iter().chain(options).map(|word| word.to_string()).collect();
        Redis::run(port, dir, arguments)
    }

    /// Start a node of a future cluster.
    pub fn node(options: &[&str]) -> Redis {
        let bus = free_port().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        Redis::start(&[&cluster[..], &["--cluster-node-timeout", "1000"], options].concat())
    }

    /// Start a Sentinel that decides alone, and soon, about the primary at this port.
    /// With TLS, the port is the one given with it.
    pub fn sentinel(name: &str, primary: u16, tls: Option<(&Tls, u16)>) -> Redis {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let file = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {name} 127.0.0.1 {primary} 1\n\
             sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 3000\n",
            dir.path().display()
        );
        let settings = tls.into_iter().flat_map(|(tls, port)| tls.settings(port));
        let settings = settings.filter(|(name, _)| *name != "tls-cluster");
        let lines: String = settings.map(|(name, value)| format!("{name} {value}\n")).collect();
        std::fs::write(&file, lines + &text).unwrap();
        let arguments = vec![file.display().to_string(), "--sentinel".into()];
        Redis::run(port, dir, arguments)
    }

    fn run(port: u16, dir: TempDir, arguments: Vec<String>) -> Redis {
        let mut redis = Redis { child: None, port, dir, arguments };
        redis.again();
        redis
    }

    /// Start it again, with its data on disk.
    pub fn again(&mut self) {
        let child = tools::redis_server()
            .args(&self.arguments)
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is there: `cargo xtask setup` installs it");
        self.child = Some(child);
        let there = wait_for(PATIENCE, || self.answers());
        assert!(there.is_some(), "redis-server does not start");
    }

    fn answers(&self) -> Option<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"PING\r\n").ok()?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).ok()?;
        (&answer == b"+PONG").then_some(())
    }

    /// Send SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Return the id of the running process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Send SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
