//! The companion server inside the daemon: `run --listen`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use prometheus::Registry;

use super::state::State;
use crate::{
    config::Settings,
    domain::{address::Prefixes, policy::PolicySettings},
    server::{
        Config, PingRates, Server,
        access_log::{AccessLog, Flush},
        service::Service,
    },
    telemetry::spans::Spans,
};

/// How often the policy in force is looked at.
const FOLLOW: Duration = Duration::from_millis(500);

/// A running server and its log.
pub struct Companion {
    server: Server,
    _flush: Flush,
}

impl Companion {
    /// Start it, if the settings ask for one. It listens before this returns.
    pub fn start(
        settings: &Settings,
        registry: &Registry,
        spans: Option<Arc<Spans>>,
    ) -> anyhow::Result<Option<Companion>> {
        let Some(listen) = settings.run.listen else { return Ok(None) };
        let path = &settings.run.access_log;
        let (access_log, flush) = AccessLog::open(path)
            .with_context(|| format!("cannot write the access log {}", path.display()))?;
        let policy = &settings.policy;
        let mut config = Config::new(listen);
        config.spans = spans;
        config.handler = settings.run.handler;
        config.prefixes = Prefixes { v4: policy.ipv4_prefix, v6: policy.ipv6_prefix };
        config.ping_rates = rates(policy).unwrap_or(config.ping_rates);
        let server = Server::start(config, access_log, registry)?;
        tracing::info!("serving WebSocket connections on {}", server.address());
        Ok(Some(Companion { server, _flush: flush }))
    }

    /// What its connections are asked through.
    pub fn service(&self) -> Arc<Service> {
        self.server.service().clone()
    }

    /// Keep the server's limits those of the policy in force, whoever changes it.
    pub fn follow_policy(&self, state: State) -> impl Future<Output = ()> + use<> {
        let service = self.server.service().clone();
        async move {
            loop {
                tokio::time::sleep(FOLLOW).await;
                follow(&service, &state);
            }
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
