//! Messages between daemon and server, in JSON.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;
use serde::{Deserialize, Serialize};
use ws_guard_server::{PingPolicy, PingRates, source::Prefixes};

use crate::{
    config::server::ServerSection,
    domain::{policy::PolicySettings, proxies::TrustedProxies},
};

/// Configuration of a starting server, besides the daemon's flags, which it shares.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub listen: SocketAddr,
    pub access_log: PathBuf,
    pub otlp_endpoint: Option<String>,
    pub json_log: bool,
    /// Proxies that the server trusts to name its clients.
    pub proxies: TrustedProxies,
    pub section: ServerSection,
    pub limits: Limits,
}

/// Server's part of the policy in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub policy: PolicySettings,
    /// Exempt networks.
    pub exempt: Vec<IpNet>,
}

/// Settings that the server takes over while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Following {
    pub limits: Limits,
    pub section: ServerSection,
}

/// Pings inside TLS since the last request, by source.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TakenPings(pub Vec<(IpNet, u32)>);

impl Limits {
    /// Return the policy for pings on `port` that the server applies itself.
    /// Any validated policy has limits. As in the kernel, only the longest prefix counts.
    pub fn pings(&self, port: u16) -> Option<PingPolicy> {
        let policy = &self.policy;
        let own = policy.port_policies.iter().find(|policy| policy.port == port);
        let of_port = own.map_or_else(|| policy.clone(), |own| own.own.over(policy));
        let mut networks = JointPrefixMap::new();
        for network in &policy.cidrs {
            networks.insert(network.cidr, rates(&network.own.over(&of_port))?);
        }
        for network in &self.exempt {
            networks.insert(*network, PingRates::default());
        }
        let prefixes = Prefixes { v4: policy.ipv4_prefix, v6: policy.ipv6_prefix };
        Some(PingPolicy { prefixes, rates: rates(&of_port)?, networks })
    }
}

fn rates(policy: &PolicySettings) -> Option<PingRates> {
    let connection = policy.max_ping_rate_per_connection;
    let rates = PingRates::new(policy.max_ping_rate, connection, policy.window_seconds).ok()?;
    Some(rates.with_share(policy.connection_share))
}

#[cfg(test)]
mod tests {
    use ws_guard_server::Pings;

    use super::*;
    use crate::domain::policy::{parse_network, parse_port};

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
        let exempt = ["10.7.0.0/16", "10.9.9.0/24"].map(|text| text.parse().unwrap()).to_vec();
        let given = Limits { policy, exempt };
        // As the server's process reads it.
        let read: Limits = serde_json::from_slice(&serde_json::to_vec(&given).unwrap()).unwrap();
        assert_eq!(read, given);
        let limits = |port| {
            let pings = Pings::new(read.pings(port).unwrap());
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
