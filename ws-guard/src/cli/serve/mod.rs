//! `ws-guard serve`: the companion server alone, which needs no privilege.

use std::{
    future::pending, net::SocketAddr, path::PathBuf, pin::pin, process::ExitCode, sync::Arc,
};

use anyhow::Context;
use clap::{Args, error::ErrorKind, value_parser};
use prometheus::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use ws_guard_common::window::Rate;

mod access;
mod control;
mod flags;
mod follow;
mod handler;

pub use self::flags::ServerFlags;
use super::{Global, blame::variables};
use ws_guard_server::{
    Config, PingPolicy, PingRates, Pings, Server,
    access_log::AccessLog,
    telemetry::{self, Endpoint, Telemetry},
    watch::Watch,
};

use crate::{
    api::socket::Socket,
    config::{
        LogFormat, listen_address, reloadable::Reloadable, server::ServerSection, unknown_variables,
    },
    domain::proxies::TrustedProxies,
    listener::{
        self, descriptors,
        http::{self, Limits},
    },
    log::log_to_stderr,
    metrics::router_alone,
};

const HELP: &str = "\
A WebSocket server that echoes, or with --handler topic publishes and subscribes: RFC 6455 and
permessage-deflate, heartbeats, and limits on whatever
a client can make it hold. The access log has a line of JSON for each connection that opened, closed
or was refused, with the cause.

Examples:
  ws-guard serve --listen :8080
  ws-guard serve --listen 127.0.0.1:8080 --metrics-listen 127.0.0.1:9464 --access-log access.jsonl
  ws-guard serve --listen :8443 --tls-certificate chain.pem --tls-key key.pem \\
    --tls-client-ca clients.pem --user-from certificate
  ws-guard serve --listen :8080 --user-from query:user --config rollout.toml

The file assigns subprotocols to all users or a share of them:
  [[server.protocol]]
  offer = \"v2+compression\"
  features = [\"compression\"]           # and encryption, client-certificate, streaming
  percent = 15                         # or user-id-below = 2; all users without
The same section may have `max-output = 65536`, and rows `[[server.topic]]` for --handler topic. The file is read again when it changes and on SIGHUP;
one with an error leaves the old settings in force.

`ws-guard connections` lists its connections, over --control-socket, which is
/run/ws-guard/serve.sock unless it is named. Without the right to make that one it does without.
On the metrics port: /metrics, /healthz, /readyz, /health.
SIGTERM and SIGINT close all connections with 1012, after --shutdown-delay, and end it when they are
gone.
Exit codes: 0 ended by a signal, 1 failed, 2 usage, 64 bad configuration.";

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
    #[arg(long, value_name = "N", env = "WS_GUARD_MAX_PING_RATE", default_value_t = 30,
        value_parser = value_parser!(u32).range(0..=i64::from(Rate::MAX_LIMIT)))]
    max_ping_rate: u32,
    /// The same for each connection; 0 is no such limit
    #[arg(
        long,
        value_name = "N",
        env = "WS_GUARD_MAX_PING_RATE_PER_CONNECTION",
        default_value_t = 0,
        value_parser = value_parser!(u32).range(0..=i64::from(Rate::MAX_LIMIT))
    )]
    max_ping_rate_per_connection: u32,
    /// Pings that every connection has answered in any window, whatever others of its source send
    #[arg(long, value_name = "N", env = "WS_GUARD_CONNECTION_SHARE", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(0..=64))]
    connection_share: u32,
    /// Length of the window in seconds, 1 to 3600
    #[arg(long, value_name = "S", env = "WS_GUARD_WINDOW_SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    window_seconds: u32,
    /// Proxy trusted to name its clients; private: all private, shared, loopback and link-local
    /// addresses. Several with commas, or by giving it again
    #[arg(
        long,
        value_name = "CIDR|private|none",
        env = "WS_GUARD_TRUSTED_PROXY",
        value_delimiter = ',',
        value_parser = proxy,
        default_value = "none"
    )]
    trusted_proxy: Vec<String>,
    /// File to append the access log to; -: standard output
    #[arg(long, value_name = "PATH", env = "WS_GUARD_ACCESS_LOG", default_value = "-")]
    access_log: PathBuf,
    /// TOML file whose section `server` assigns subprotocols to users and says what topics are; watched
    /// for changes. It may be that of `ws-guard run`
    #[arg(long, value_name = "FILE", env = "WS_GUARD_CONFIG")]
    config: Option<PathBuf>,
    /// Collector to send traces and metrics to, over OTLP: http://collector:4318, or https. Without
    /// the flag, OTEL_EXPORTER_OTLP_ENDPOINT
    #[arg(long, value_name = "URL", env = "WS_GUARD_OTLP_ENDPOINT")]
    otlp_endpoint: Option<Endpoint>,
    #[command(flatten)]
    server: ServerFlags,
}

/// Check a trusted proxy, so that an error names its origin.
fn proxy(text: &str) -> Result<String, String> {
    let mut trusted = TrustedProxies::of(&[]);
    trusted.clear();
    trusted.add(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

impl Serve {
    pub fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        log_to_stderr(LogFormat::Text, "info");
        let given: Vec<String> =
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
        let own = variables(&Serve::augment_args(clap::Command::new("serve")));
        for variable in unknown_variables(given.iter(), &own) {
            tracing::warn!("{variable}: unknown setting, ignored");
        }
        // Started before the first reading, so that no change is missed.
        let watch = self.config.clone().map(Watch::new);
        let section = self.config.as_deref().map(ServerSection::load).transpose()?;
        let mut config = self.config(&section.unwrap_or_default())?;
        let (access_log, _flush) = AccessLog::open(&self.access_log).with_context(|| {
            format!("cannot write the access log {}", self.access_log.display())
        })?;
        let registry = Registry::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let metrics = match self.metrics_listen {
            Some(address) => {
                Some(runtime.block_on(async { listener::listen(address) }).with_context(|| {
                    format!("cannot listen on {address} for metrics: is the port in use?")
                })?)
            }
            None => None,
        };
        let endpoint = otlp_endpoint(self.otlp_endpoint.clone())?;
        let telemetry = Telemetry::start(endpoint.as_ref(), &registry)?;
        config.trace = telemetry.as_ref().and_then(Telemetry::trace);
        // Before the server is visible: a signal does not end the first process of a container,
        // unless it is handled.
        let signals = {
            let _entered = runtime.enter();
            Signals::new()?
        };
        let following = follow::Follow {
            file: self.config,
            watch,
            server: Reloadable::of(&config),
            tls: config.tls.clone(),
        };
        let mut control = runtime.block_on(async { control::claim(global) })?;
        let server = Server::start(config, access_log, &registry)?;
        tracing::info!("serving WebSocket connections on {}", server.address());
        let work = Work { metrics, registry, following };
        runtime.block_on(work.until_ended(signals, control.as_mut(), server))?;
        if let Some(telemetry) = telemetry {
            telemetry.stop();
        }
        Ok(ExitCode::SUCCESS)
    }

    fn trusted(&self) -> Result<TrustedProxies, clap::Error> {
        let mut trusted = TrustedProxies::of(&[]);
        trusted.clear();
        let wrong = |error| {
            clap::Error::raw(ErrorKind::InvalidValue, format!("--trusted-proxy: {error}\n"))
        };
        self.trusted_proxy.iter().try_for_each(|text| trusted.add(text)).map_err(wrong)?;
        Ok(trusted)
    }

    fn config(&self, section: &ServerSection) -> anyhow::Result<Config> {
        let mut config = Config::new(self.listen);
        self.server.apply(&mut config, section, &self.trusted()?)?;
        descriptors::back(&mut config);
        config.pings = Arc::new(Pings::new(PingPolicy::new(self.ping_rates()?)));
        Ok(config)
    }

    fn ping_rates(&self) -> anyhow::Result<PingRates> {
        let (source, connection) = (self.max_ping_rate, self.max_ping_rate_per_connection);
        // All three have been checked as flags.
        let rates = PingRates::new(source, connection, self.window_seconds);
        let wrong = |_| anyhow::anyhow!("no limit has these numbers: give smaller ones");
        Ok(rates.map_err(wrong)?.with_share(self.connection_share))
    }
}

/// Return the flag's end point, or that of the standard variable.
fn otlp_endpoint(flag: Option<Endpoint>) -> anyhow::Result<Option<Endpoint>> {
    let variable = std::env::var(telemetry::ENDPOINT_VARIABLE).ok();
    match (flag, variable.filter(|text| !text.trim().is_empty())) {
        (Some(endpoint), _) => Ok(Some(endpoint)),
        (None, None) => Ok(None),
        (None, Some(text)) => {
            let endpoint = text.parse().map_err(anyhow::Error::msg);
            endpoint.context(telemetry::ENDPOINT_VARIABLE).map(Some)
        }
    }
}

/// Signals that end the server, and the one that makes it read its files again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Register the signals; to be called inside a runtime.
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Tasks besides the connections.
struct Work {
    metrics: Option<TcpListener>,
    registry: Registry,
    following: follow::Follow,
}

impl Work {
    /// Serve metrics and the control API, and follow changes, until SIGTERM or SIGINT.
    /// Then continue until all connections are closed.
    async fn until_ended(
        self,
        signals: Signals,
        control: Option<&mut Socket>,
        server: Server,
    ) -> anyhow::Result<()> {
        let Signals { mut terminate, mut interrupt, hangup } = signals;
        let service = server.service().clone();
        let serving = async {
            match self.metrics {
                Some(listener) => {
                    let router = router_alone(self.registry, service.clone());
                    http::serve(listener, router, Limits::METRICS).await
                }
                None => pending().await,
            }
        };
        let mut background = pin!(async {
            tokio::select! {
                () = self.following.run(hangup) => Ok(()),
                () = service.access_log.reopen_on_hangup() => Ok(()),
                () = serving => Ok(()),
                served = control::serve(control, service.clone()) => served,
            }
        });
        tokio::select! {
            ended = &mut background => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::select! {
            ended = &mut background => return ended,
            () = service.leave() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("closing {} connections", service.admission.open());
        // Threads are joined, which blocks.
        let stopped = tokio::task::spawn_blocking(|| server.stop());
        tokio::select! {
            ended = background => ended,
            stopped = stopped => stopped.context("stopping the server"),
        }
    }
}
