//! Flags of the server that `serve` and `run --listen` share.

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::{access::AccessFlags, handler::HandlerFlags};
use ws_guard_server::{
    Config,
    heartbeat::Times,
    negotiation::Negotiation,
    noise_key::NoiseKey,
    output_limit::{self, OutputLimit},
    routing::Share,
    stall::Thresholds,
    tls::{Clients, Tls},
};

use crate::{config::server::ServerSection, domain::proxies::TrustedProxies};

#[derive(Args)]
#[command(next_help_heading = "Companion server")]
pub struct ServerFlags {
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
    /// Bytes that may be on their way to a client before nothing more is read from it; goes before
    /// `max-output` of the file's section `server` [default: 49152]
    #[arg(long, value_name = "BYTES", env = "WS_GUARD_MAX_OUTPUT",
        value_parser = clap::value_parser!(u32).range(output_bytes()))]
    max_output: Option<u32>,
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
    /// Time for which new connections are still accepted after the signal to end, while /readyz says 503; a
    /// second signal ends the wait
    #[arg(long, value_name = "TIME", env = "WS_GUARD_SHUTDOWN_DELAY", default_value = "0s",
        value_parser = delay)]
    shutdown_delay: Duration,
    /// Time over which connections are closed at the end, with 1012 and a time to come back after, so
    /// that not all clients come back at once
    #[arg(long, value_name = "TIME", env = "WS_GUARD_SHUTDOWN_SPREAD", default_value = "0s",
        value_parser = delay)]
    shutdown_spread: Duration,
    /// New connections a second, and as many at once; above that a handshake is answered with 503. 0 is
    /// no such limit
    #[arg(long, value_name = "N", env = "WS_GUARD_ADMISSION_RATE", default_value_t = 0)]
    admission_rate: u32,
    /// The cluster of this server, as 3/16: users of others are answered with 421. See `ws-guard route`
    #[arg(long, value_name = "N/OF", env = "WS_GUARD_USER_CLUSTER")]
    user_cluster: Option<Share>,
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
    #[arg(long, env = "WS_GUARD_NO_COMPRESSION",
        value_parser = clap::builder::BoolishValueParser::new())]
    no_compression: bool,
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
    /// Certificates in PEM that vouch for those of clients
    #[arg(long, value_name = "FILE", env = "WS_GUARD_TLS_CLIENT_CA", requires = "tls_certificate")]
    tls_client_ca: Option<PathBuf>,
    /// Whether a client needs a certificate. One that it shows has to be good in any case
    #[arg(
        long,
        value_name = "WHETHER",
        env = "WS_GUARD_TLS_CLIENT_CERTIFICATE",
        default_value = "required",
        requires = "tls_client_ca"
    )]
    tls_client_certificate: Wanted,
    /// X25519 key in PEM for subprotocols that encrypt, as `openssl genpkey -algorithm x25519` makes it
    #[arg(long, value_name = "FILE", env = "WS_GUARD_NOISE_KEY")]
    noise_key: Option<PathBuf>,
    #[command(flatten)]
    handler: HandlerFlags,
    #[command(flatten)]
    access: AccessFlags,
}

/// Whether a client's certificate is optional or required.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Optional,
    Required,
}

/// Return the limits of the output buffer in the form that clap needs.
fn output_bytes() -> RangeInclusive<i64> {
    i64::from(*output_limit::RANGE.start())..=i64::from(*output_limit::RANGE.end())
}

/// Parse a duration above zero, small enough that no sum of instants overflows.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    match delay(text)? {
        Duration::ZERO => Err("must be above 0".into()),
        time => Ok(time),
    }
}

/// Parse such a duration, or zero.
fn delay(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay > LONGEST {
        return Err("must be at most a day".into());
    }
    Ok(delay)
}

impl ServerFlags {
    /// Check whether the flags need a server.
    pub fn want_a_server(&self) -> bool {
        self.tls_certificate.is_some() || self.noise_key.is_some() || self.access.restricts()
    }

    /// Apply the flags and the file's section to `config`; `trusted` are the proxies.
    pub fn apply(
        &self,
        config: &mut Config,
        section: &ServerSection,
        trusted: &TrustedProxies,
    ) -> anyhow::Result<()> {
        config.shards = self.shards.map_or(config.shards, usize::from);
        config.max_connections = self.max_connections;
        config.max_connections_per_source = self.max_connections_per_source;
        config.max_connections_per_user = self.max_connections_per_user;
        config.handler = self.handler.handler(section, config.listen.port())?;
        config.demo_page = self.handler.demo_page()?;
        config.access = self.access.access()?;
        config.proxies = self.access.proxies(trusted)?;
        config.tls = self.tls()?.map(Arc::new);
        config.negotiation = Arc::new(self.negotiation(section)?);
        config.output = Arc::new(OutputLimit::new(self.max_output, section.max_output));
        config.memory_budget = self.memory_budget;
        config.limits.message = self.max_message_size;
        config.shutdown_delay = self.shutdown_delay;
        config.shutdown_spread = self.shutdown_spread;
        config.admission_rate = self.admission_rate;
        config.user_cluster = self.user_cluster;
        config.drain_timeout = self.drain_timeout;
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
        Ok(())
    }

    fn tls(&self) -> anyhow::Result<Option<Tls>> {
        let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) else {
            return Ok(None);
        };
        let required = self.tls_client_certificate == Wanted::Required;
        let clients = self.tls_client_ca.clone();
        let clients = clients.map(|authorities| Clients { authorities, required });
        Ok(Some(Tls::with_clients(certificate, key, clients)?))
    }

    fn negotiation(&self, section: &ServerSection) -> anyhow::Result<Negotiation> {
        let key = self.noise_key.as_ref().map(|path| {
            let key = NoiseKey::from_file(path);
            key.with_context(|| format!("cannot use the key in {} for Noise", path.display()))
        });
        let key = key.transpose()?;
        if let Some(key) = &key {
            tracing::info!("clients that encrypt expect the key {}", key.public_hex());
        }
        let demanded = section.protocols.rows.iter().find(|row| row.features.client_certificate);
        if let (Some(row), Some(_), None) = (demanded, &self.tls_certificate, &self.tls_client_ca) {
            tracing::warn!(
                "{} is offered to no client, because it needs a client certificate: give --tls-client-ca",
                row.answer
            );
        }
        Ok(Negotiation::new(section.protocols.clone(), key)?)
    }
}
