//! The companion server inside the daemon: `run --listen`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use prometheus::Registry;

use super::state::State;
use crate::{
    config::Settings,
    control::{error::ApiError, reports},
    domain::{address::Prefixes, policy::PolicySettings},
    server::{
        Config, PingRates, Server,
        access_log::{AccessLog, Flush},
        seen::{self, Seen},
        service::Service,
        tls::Tls,
    },
};

/// How often the policy in force is looked at.
const FOLLOW: Duration = Duration::from_millis(500);
/// How often pings inside TLS are reported to the kernel: what passes until then is limited by the
/// server alone.
const REPORT: Duration = Duration::from_millis(250);

// What the server collects fits into one batch.
const _: () = assert!(seen::MOST <= reports::MOST);

/// A running server and its log.
pub struct Companion {
    server: Server,
    seen: Arc<Seen>,
    tls: Option<Arc<Tls>>,
    _flush: Flush,
}

impl Companion {
    /// Start it. It listens before this returns.
    pub fn start(
        mut config: Config,
        settings: &Settings,
        registry: &Registry,
    ) -> anyhow::Result<Companion> {
        let path = &settings.run.access_log;
        let (access_log, flush) = AccessLog::open(path)
            .with_context(|| format!("cannot write the access log {}", path.display()))?;
        let policy = &settings.policy;
        config.prefixes = Prefixes { v4: policy.ipv4_prefix, v6: policy.ipv6_prefix };
        config.ping_rates = rates(policy).unwrap_or(config.ping_rates);
        let (seen, tls) = (Arc::new(Seen::new(registry)?), config.tls.clone());
        config.seen = Some(seen.clone());
        let server = Server::start(config, access_log, registry)?;
        tracing::info!("serving WebSocket connections on {}", server.address());
        Ok(Companion { server, seen, tls, _flush: flush })
    }

    /// What its connections are asked through.
    pub fn service(&self) -> Arc<Service> {
        self.server.service().clone()
    }

    /// Keep the server's limits those of the policy in force, whoever changes it; tell the kernel
    /// what only the server sees; and take over new certificates.
    pub fn follow(&self, state: State) -> impl Future<Output = ()> + use<> {
        let service = self.server.service().clone();
        let reporting = report(self.seen.clone(), self.server.address().port(), state.clone());
        let tls = self.tls.clone();
        async move {
            let following = async {
                loop {
                    tokio::time::sleep(FOLLOW).await;
                    follow(&service, &state);
                }
            };
            let certificate = async {
                match &tls {
                    Some(tls) => tls.follow().await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(following, reporting, certificate);
        }
    }

    /// Close all connections, and wait until they are gone.
    pub async fn stop(self) {
        // Threads are joined, which blocks.
        let stopped = tokio::task::spawn_blocking(move || self.server.stop()).await;
        if stopped.is_err() {
            tracing::error!("stopping the companion server panicked");
        }
    }
}

/// Charge the pings that the server saw inside TLS to the sources that the kernel counts, in batches.
async fn report(seen: Arc<Seen>, port: u16, state: State) {
    let mut failed = None;
    loop {
        tokio::time::sleep(REPORT).await;
        let pings = seen.take();
        if pings.is_empty() {
            continue;
        }
        let operator = state.operator.clone();
        // Each source is a few system calls.
        let reported =
            tokio::task::spawn_blocking(move || operator.report_pings(pings, port)).await;
        let error = match reported {
            Ok(reported) => reported.err().map(|error: ApiError| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if error != failed {
            match &error {
                Some(error) => tracing::warn!("pings inside TLS are not reported: {error}"),
                None => tracing::info!("pings inside TLS are reported again"),
            }
        }
        failed = error;
    }
}

fn follow(service: &Arc<Service>, state: &State) {
    match state.reader.policy().map(|policy| rates(&policy)) {
        Ok(Some(rates)) if rates != service.ping_rates() => service.set_ping_rates(rates),
        Ok(_) => {}
        Err(error) => tracing::warn!("the companion server cannot read the policy: {error}"),
    }
}

/// The policy's limits; a policy that was validated has some.
fn rates(policy: &PolicySettings) -> Option<PingRates> {
    let connection = policy.max_ping_rate_per_connection;
    PingRates::new(policy.max_ping_rate, connection, policy.window_seconds).ok()
}
