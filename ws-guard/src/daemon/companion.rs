//! The companion server inside the daemon: `run --listen`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use prometheus::Registry;

use super::state::State;
use ws_guard_server::{
    Config, PingPolicy, PingRates, Pings, Server,
    access_log::{AccessLog, Flush},
    seen::{self, Seen},
    service::Service,
    source::Prefixes,
    tls::Tls,
};

use crate::{
    config::Settings,
    control::{error::ApiError, reports},
    domain::policy::PolicySettings,
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
        let of_settings = policy_of(&settings.policy, &settings.allow, config.listen.port());
        config.pings = Arc::new(Pings::new(of_settings.unwrap_or_default()));
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
            let following = follow(&service, &state);
            let certificate = async {
                match &tls {
                    Some(tls) => tls.follow().await,
                    None => std::future::pending().await,
                }
            };
            let log = service.access_log.reopen_on_hangup();
            tokio::join!(following, reporting, certificate, log);
        }
    }

    /// Go on for a while, so that clients can be sent elsewhere.
    pub async fn leave(&self) {
        self.server.service().leave().await;
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

/// Take over the policy in force whenever it is another one.
async fn follow(service: &Service, state: &State) {
    let (mut last, mut failed) = (None, None);
    loop {
        tokio::time::sleep(FOLLOW).await;
        let read = state.reader.policy_and_exempt().map_err(|error| error.to_string());
        let error = read.as_ref().err().cloned();
        if let Some(error) = error.as_ref().filter(|_| failed != error) {
            tracing::warn!("the companion server cannot read the policy: {error}");
        }
        failed = error;
        let Ok(read) = read else { continue };
        if last.as_ref() != Some(&read) {
            let port = service.config.listen.port();
            if let Some(policy) = policy_of(&read.0, &read.1, port) {
                service.config.pings.set(policy);
            }
            last = Some(read);
        }
    }
}

/// What of a policy the server applies itself to pings that come to `port`; a policy that was validated
/// has limits. As in the kernel, the longest prefix decides alone.
fn policy_of(policy: &PolicySettings, exempt: &[IpNet], port: u16) -> Option<PingPolicy> {
    let own = policy.port_policies.iter().find(|policy| policy.port == port);
    let of_port = own.map_or_else(|| policy.clone(), |own| own.own.over(policy));
    let mut networks = JointPrefixMap::new();
    for network in &policy.cidrs {
        networks.insert(network.cidr, rates(&network.own.over(&of_port))?);
    }
    for network in exempt {
        networks.insert(*network, PingRates::default());
    }
    let prefixes = Prefixes { v4: policy.ipv4_prefix, v6: policy.ipv6_prefix };
    Some(PingPolicy { prefixes, rates: rates(&of_port)?, networks })
}

fn rates(policy: &PolicySettings) -> Option<PingRates> {
    let connection = policy.max_ping_rate_per_connection;
    let rates = PingRates::new(policy.max_ping_rate, connection, policy.window_seconds).ok()?;
    Some(rates.with_share(policy.connection_share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::overrides::{parse_network, parse_port};

    #[test]
    fn ports_networks_and_the_allowlist_go_before_the_rest() {
        let mut policy = PolicySettings { window_seconds: 20, ..PolicySettings::default() };
        let own = |text: &str| parse_port(text).unwrap();
        for text in ["8080", "8443/tls max-ping-rate=5 max-ping-rate-per-connection=2"] {
            let (port, own) = own(text);
            policy.add_port(port, own).unwrap();
        }
        policy.cidrs = vec![
            parse_network("10.0.0.0/8 max-ping-rate=100").unwrap(),
            parse_network("10.9.0.0/16 window-seconds=60").unwrap(),
        ];
        let exempt = ["10.7.0.0/16", "10.9.9.0/24"].map(|text| text.parse().unwrap());
        let limits = |port| {
            let pings = Pings::new(policy_of(&policy, &exempt, port).unwrap());
            ["192.0.2.1", "10.1.1.1", "10.9.1.1", "10.7.0.1", "10.9.9.1"].map(|address| {
                let rates = pings.rates(&pings.source_of(address.parse().unwrap()));
                (rates.source.limit, rates.connection.limit, rates.source.window_ms / 1000)
            })
        };
        let none = (0, 0, 0);
        assert_eq!(limits(8080), [(30, 0, 20), (100, 0, 20), (30, 0, 60), none, none]);
        assert_eq!(limits(8443), [(5, 2, 20), (100, 2, 20), (5, 2, 60), none, none]);
    }
}
