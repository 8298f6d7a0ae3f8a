//! `ws-guard serve`: the companion server alone, which needs no privilege.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{Router, routing::get};
use clap::Args;
use prometheus::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use ws_guard_common::window::Rate;

mod access;

use self::access::AccessFlags;
use super::run::log_to_stderr;
use crate::{
    config::{LogFormat, listen_address},
    metrics::text,
    server::{
        Config, PingRates, Server, access_log::AccessLog, heartbeat::Times, stall::Thresholds,
        tls::Tls,
    },
};

const HELP: &str = "\
A WebSocket server that echoes: RFC 6455 and permessage-deflate, heartbeats, and limits on whatever
a client can make it hold. The access log has a line of JSON for each connection that opened, closed
or was refused, with the cause.

Examples:
  ws-guard serve --listen :8080
  ws-guard serve --listen 127.0.0.1:8080 --metrics-listen 127.0.0.1:9464 --access-log access.jsonl

On the metrics port: /metrics, /healthz, /readyz, /health.
SIGTERM and SIGINT close all connections with 1001, and end it when they are gone.
Exit codes: 0 ended by a signal, 1 failed, 2 usage.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Serve {
    /// Address and port to serve WebSocket connections on
    #[arg(long, value_name = "ADDR", env = "WS_GUARD_LISTEN", value_parser = listen_address)]
    listen: SocketAddr,
    /// Address and port to serve Prometheus metrics and health checks on
    #[arg(long, value_name = "ADDR", env = "WS_GUARD_METRICS_LISTEN", value_parser = listen_address)]
    metrics_listen: Option<SocketAddr>,
    /// Pings of a source that are answered in any window; 0 answers all
    #[arg(long, value_name = "N", env = "WS_GUARD_MAX_PING_RATE", default_value_t = 30)]
    max_ping_rate: u32,
    /// The same for each connection; 0 is no such limit
    #[arg(
        long,
        value_name = "N",
        env = "WS_GUARD_MAX_PING_RATE_PER_CONNECTION",
        default_value_t = 0
    )]
    max_ping_rate_per_connection: u32,
    /// Length of the window in seconds, 1 to 3600
    #[arg(long, value_name = "S", env = "WS_GUARD_WINDOW_SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    window_seconds: u32,
    /// Connections at a time; above that a handshake is answered with 503
    #[arg(long, value_name = "N", env = "WS_GUARD_MAX_CONNECTIONS", default_value_t = 16_384)]
    max_connections: usize,
    /// Connections of one source at a time; above that a handshake is answered with 429
    #[arg(
        long,
        value_name = "N",
        env = "WS_GUARD_MAX_CONNECTIONS_PER_SOURCE",
        default_value_t = 16_384
    )]
    max_connections_per_source: usize,
    /// Largest message in bytes, compressed and not
    #[arg(long, value_name = "BYTES", env = "WS_GUARD_MAX_MESSAGE_SIZE", default_value_t = 16 << 20)]
    max_message_size: usize,
    /// Bytes that all connections together may hold in buffers; above it new ones are refused with 503
    #[arg(long, value_name = "BYTES", env = "WS_GUARD_MEMORY_BUDGET", default_value_t = 512 << 20)]
    memory_budget: usize,
    /// Silence of a client before it is pinged, such as 25s
    #[arg(long, value_name = "TIME", env = "WS_GUARD_PING_INTERVAL", default_value = "25s",
        value_parser = time)]
    ping_interval: Duration,
    /// From a ping to its pong; a connection is closed after three of these
    #[arg(long, value_name = "TIME", env = "WS_GUARD_PONG_TIMEOUT", default_value = "8s",
        value_parser = time)]
    pong_timeout: Duration,
    /// Time for all connections to close in at the end
    #[arg(long, value_name = "TIME", env = "WS_GUARD_DRAIN_TIMEOUT", default_value = "10s",
        value_parser = time)]
    drain_timeout: Duration,
    /// Delay of a thread past which new connections are refused with 503
    #[arg(long, value_name = "TIME", env = "WS_GUARD_STALL_REFUSE", default_value = "50ms",
        value_parser = time)]
    stall_refuse: Duration,
    /// Delay past which idle connections are closed with 1013, some each second
    #[arg(long, value_name = "TIME", env = "WS_GUARD_STALL_SHED", default_value = "120ms",
        value_parser = time)]
    stall_shed: Duration,
    /// Time without a message after which a connection is idle
    #[arg(long, value_name = "TIME", env = "WS_GUARD_SHED_IDLE", default_value = "30s",
        value_parser = time)]
    shed_idle: Duration,
    /// Threads for connections [default: one a CPU]
    #[arg(long, value_name = "N", env = "WS_GUARD_SHARDS",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: Option<u16>,
    /// Do not agree to permessage-deflate
    #[arg(long)]
    no_compression: bool,
    /// File to append the access log to; - is standard output
    #[arg(long, value_name = "PATH", env = "WS_GUARD_ACCESS_LOG", default_value = "-")]
    access_log: PathBuf,
    /// Connections of one user at a time; above that a handshake is answered with 429
    #[arg(
        long,
        value_name = "N",
        env = "WS_GUARD_MAX_CONNECTIONS_PER_USER",
        default_value_t = 16_384
    )]
    max_connections_per_user: usize,
    /// Chain of certificates in PEM: with it, TLS is all that is spoken. Read again when it changes
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TLS_CERTIFICATE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TLS_KEY", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    access: AccessFlags,
}

/// A duration that no sum of instants can overflow.
fn time(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() || time > LONGEST {
        return Err("must be above 0, and at most a day".into());
    }
    Ok(time)
}

impl Serve {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        log_to_stderr(LogFormat::Text, "info");
        let config = self.config()?;
        let (access_log, _flush) = AccessLog::open(&self.access_log).with_context(|| {
            format!("cannot write the access log {}", self.access_log.display())
        })?;
        let registry = Registry::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let metrics = match self.metrics_listen {
            Some(address) => {
                Some(runtime.block_on(TcpListener::bind(address)).with_context(|| {
                    format!("cannot listen on {address} for metrics: is the port in use?")
                })?)
            }
            None => None,
        };
        // Before anybody can know that we are here: the first process of a container is not ended by a
        // signal that it does not handle.
        let signals = {
            let _entered = runtime.enter();
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
        };
        let tls = config.tls.clone();
        let server = Server::start(config, access_log, &registry)?;
        tracing::info!("serving WebSocket connections on {}", server.address());
        runtime.block_on(until_signal(signals, metrics, registry, tls))?;
        tracing::info!("closing {} connections", server.service().admission.open());
        server.stop();
        Ok(ExitCode::SUCCESS)
    }

    fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::new(self.listen);
        config.shards = self.shards.map_or(config.shards, usize::from);
        config.max_connections = self.max_connections;
        config.max_connections_per_source = self.max_connections_per_source;
        config.max_connections_per_user = self.max_connections_per_user;
        config.access = self.access.access()?;
        config.proxies = self.access.proxies();
        if let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) {
            config.tls = Some(Arc::new(Tls::load(certificate, key)?));
        }
        config.memory_budget = self.memory_budget;
        config.limits.message = self.max_message_size;
        config.drain_timeout = self.drain_timeout;
        config.ping_rates = self.ping_rates()?;
        config.heartbeat = Times {
            ping_interval: self.ping_interval,
            pong_timeout: self.pong_timeout,
            ..config.heartbeat
        };
        config.stalls = Thresholds {
            refuse: self.stall_refuse,
            shed: self.stall_shed,
            idle: self.shed_idle,
            ..config.stalls
        };
        if self.no_compression {
            config.deflate = None;
        }
        Ok(config)
    }

    fn ping_rates(&self) -> anyhow::Result<PingRates> {
        let (source, connection) = (self.max_ping_rate, self.max_ping_rate_per_connection);
        // The window has been checked by its flag.
        PingRates::new(source, connection, self.window_seconds).map_err(|_| {
            let (flag, limit) = match source > Rate::MAX_LIMIT {
                true => ("--max-ping-rate", source),
                false => ("--max-ping-rate-per-connection", connection),
            };
            anyhow::anyhow!("{flag} {limit} is over {}: give less, or 0", Rate::MAX_LIMIT)
        })
    }
}

/// Serve metrics, and follow the certificate, until SIGTERM or SIGINT.
async fn until_signal(
    [mut term, mut int]: [Signal; 2],
    metrics: Option<TcpListener>,
    registry: Registry,
    tls: Option<Arc<Tls>>,
) -> anyhow::Result<()> {
    let serving = async {
        match metrics {
            Some(listener) => axum::serve(listener, router(registry)).await,
            None => std::future::pending().await,
        }
    };
    let following = async {
        match tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = following => Ok(()),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        served = serving => served.context("serving metrics"),
    }
}

fn router(registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(move || text(registry.clone())))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ready\n"))
        .route("/health", get(async || "ok\n"))
}
