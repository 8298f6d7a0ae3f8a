//! Redis, and servers that share topics over it.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;
use ws_guard_testkit::{redis::Redis, tools};

use super::super::server::peers::{Programs, Serving, Who, text};
use crate::{cpus, setup, step};

/// Who shares topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    WsGuard,
    SocketIo,
    Sockudo,
}

impl Sharing {
    const ALL: [Sharing; 3] = [Sharing::WsGuard, Sharing::SocketIo, Sharing::Sockudo];

    /// What the load generator calls it too.
    pub fn name(self) -> &'static str {
        match self {
            Sharing::WsGuard => "ws-guard",
            Sharing::SocketIo => "socket-io",
            Sharing::Sockudo => "sockudo",
        }
    }
}

/// sockudo's release, and what it is compiled with of all that it has.
const SOCKUDO: &str = "5.2.0";
const SOCKUDO_FEATURES: &str = "local,redis";
/// Its settings, besides the addresses: no limits, no metrics, and the application that the load
/// generator knows. With the Redis adapter it insists on the cache there too.
const SOCKUDO_SETTINGS: [(&str, &str); 12] = [
    ("HOST", "127.0.0.1"),
    ("ADAPTER_DRIVER", "redis"),
    ("CACHE_DRIVER", "redis"),
    ("QUEUE_DRIVER", "memory"),
    ("METRICS_ENABLED", "false"),
    ("RATE_LIMITER_ENABLED", "false"),
    ("SOCKUDO_DEFAULT_APP_ID", "bench"),
    ("SOCKUDO_DEFAULT_APP_KEY", "bench-key"),
    ("SOCKUDO_DEFAULT_APP_SECRET", "bench-secret"),
    ("SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS", "10000"),
    ("SOCKUDO_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SECOND", "0"),
    ("SOCKUDO_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "true"),
];

/// What is needed to start them.
pub struct Servers<'a> {
    pub programs: &'a Programs,
    folder: tempfile::TempDir,
    socket_io: PathBuf,
    /// Where it is to be measured.
    sockudo: Option<PathBuf>,
}

/// Servers on a Redis of their own.
pub struct Fleet {
    pub servers: Vec<Serving>,
    pub redis: Redis,
}

impl Fleet {
    pub fn ports(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.port.to_string()).collect()
    }
}

impl<'a> Servers<'a> {
    pub fn new(programs: &'a Programs, with_sockudo: bool) -> Result<Servers<'a>> {
        let folder = tempfile::tempdir()?;
        let rules = "[[server.topic]]\nmatch = \"chat*\"\nhistory = 1000\n";
        fs::write(folder.path().join("topics.toml"), rules)?;
        fs::write(folder.path().join("secret"), "x".repeat(32))?;
        let sockudo = with_sockudo.then(sockudo).transpose()?;
        Ok(Servers { programs, folder, socket_io: socket_io()?, sockudo })
    }

    /// Those that are measured.
    pub fn all(&self) -> impl Iterator<Item = Sharing> + Clone {
        let there = self.sockudo.is_some();
        Sharing::ALL.into_iter().filter(move |who| there || *who != Sharing::Sockudo)
    }

    /// So many, on one CPU together; Redis is on that of the load generator.
    pub fn fleet(&self, who: Sharing, count: usize) -> Result<Fleet> {
        let redis = cpus::start_on(cpus::ends()?[1], || Ok(Redis::start(&[])))?;
        let url = format!("redis://127.0.0.1:{}", redis.port);
        let servers = (0..count).map(|number| match who {
            Sharing::WsGuard => {
                let name = format!("server-{number}");
                self.ws_guard(&["--bus", &url, "--bus-server", &name])
            }
            Sharing::SocketIo => self.programs.serve_with(who.name(), |port| {
                let mut node = Command::new("node");
                node.arg(self.socket_io.join("server.cjs")).args([&port.to_string(), &url]);
                node
            }),
            Sharing::Sockudo => self.programs.serve_with(who.name(), |port| {
                let mut sockudo =
                    Command::new(self.sockudo.as_deref().unwrap_or("sockudo".as_ref()));
                sockudo.env("PORT", port.to_string()).env("REDIS_URL", &url);
                sockudo.env("RUST_LOG", "warn,sockudo::bootstrap::runtime=info");
                sockudo.envs(SOCKUDO_SETTINGS);
                sockudo
            }),
        });
        Ok(Fleet { servers: servers.collect::<Result<_>>()?, redis })
    }

    /// One with topics.
    pub fn ws_guard(&self, more: &[&str]) -> Result<Serving> {
        let [rules, secret] = ["topics.toml", "secret"].map(|name| self.folder.path().join(name));
        let flags = ["--handler", "topic", "--config", text(&rules)];
        let secret = ["--resume-secret", text(&secret)];
        let most = ["--max-connections", "15500", "--max-connections-per-source", "15500"];
        let queue = ["--queue-messages", "2000", "--queue-bytes", "4194304"];
        let all = [&flags[..], &secret, &most, &queue, more].concat();
        self.programs.serve(Who::WsGuard, false, &all)
    }
}

/// sockudo, compiled as its lock file says, below the target directory. Where that is interrupted, it
/// goes on with the next call.
fn sockudo() -> Result<PathBuf> {
    setup::sockudo()?;
    let folder = tools::target().join("bench-sockudo");
    let program = folder.join("bin/sockudo");
    // Cargo does nothing where this release is installed.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["install", "sockudo", "--locked", "--no-default-features", "--quiet"]);
    cargo.args(["--version", SOCKUDO, "--features", SOCKUDO_FEATURES, "--root"]).arg(&folder);
    cargo.arg("--target-dir").arg(folder.join("build"));
    step::run("compiling sockudo", cargo)?;
    Ok(program)
}

/// The folder of the program on socket.io, with its packages.
fn socket_io() -> Result<PathBuf> {
    let (source, folder) =
        (tools::workspace().join("bench/socket-io"), tools::target().join("bench-messaging"));
    fs::create_dir_all(&folder)?;
    for file in ["package.json", "server.cjs"] {
        fs::copy(source.join(file), folder.join(file))
            .with_context(|| format!("copying {file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]);
    npm.current_dir(&folder);
    step::run("fetching socket.io", npm)?;
    Ok(folder)
}
