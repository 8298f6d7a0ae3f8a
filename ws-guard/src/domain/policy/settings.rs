//! Settings of a policy.

use serde::{Deserialize, Serialize};
use ws_guard_common::maps::SCOPES;

use super::{
    choice::{Action, EscalateTo, Fragments, OnFullFlows, OnFullSources},
    headers::ClientFrom,
};
use crate::domain::{
    overrides::{NetworkPolicy, Overrides, PortPolicy},
    pace::Pace,
    proxies::TrustedProxies,
    records::RecordBytes,
};

/// Settings that may change while packets flow. Field names are those of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySettings {
    pub action: Action,
    /// Pings a source may send in any window.
    pub max_ping_rate: u32,
    pub window_seconds: u32,
    /// Minimum throttle duration; 0: as long as the window.
    pub min_throttle_seconds: u32,
    /// Pings over the limit per window after which `escalate_to` applies; 0: never.
    pub escalate_after: u32,
    pub escalate_to: EscalateTo,
    /// Bytes a second of all connections of a source over the limit, under `defuse`.
    pub pace: Pace,
    /// Apply bans also to trusted proxies, and to sources with other connections.
    pub ban_forced: bool,
    /// Pings a connection may send in any window; 0: no such limit.
    pub max_ping_rate_per_connection: u32,
    /// Pings that every connection may send in any window, whatever its source used.
    pub connection_share: u32,
    /// Frames of other classes per connection in any window; 0: no such limit.
    pub max_pong_rate: u32,
    pub max_empty_fragment_rate: u32,
    pub max_tiny_frame_rate: u32,
    /// Longest payload of a tiny data frame, in bytes.
    pub tiny_frame_bytes: u32,
    pub max_close_rate: u32,
    /// The ports speak TLS: records are tracked, not frames.
    pub tls: bool,
    /// Small TLS records that a connection may send in any window; 0: no such limit.
    pub max_record_rate: u32,
    /// Range of small records.
    pub record_bytes: RecordBytes,
    pub ipv4_prefix: u8,
    pub ipv6_prefix: u8,
    pub on_full_flows: OnFullFlows,
    pub on_full_sources: OnFullSources,
    pub fragments: Fragments,
    /// Protected TCP ports of the server side.
    pub ports: Vec<u16>,
    /// Ports with their own settings, in numerical order.
    pub port_policies: Vec<PortPolicy>,
    /// Networks with their own settings.
    pub cidrs: Vec<NetworkPolicy>,
    /// Proxies trusted to name a request's client.
    pub trusted_proxies: TrustedProxies,
    /// Headers in which trusted proxies name the client.
    pub client_from: ClientFrom,
}

impl Default for PolicySettings {
    fn default() -> PolicySettings {
        PolicySettings {
            action: Action::default(),
            max_ping_rate: 30,
            window_seconds: 10,
            min_throttle_seconds: 0,
            escalate_after: 0,
            escalate_to: EscalateTo::default(),
            pace: Pace::default(),
            ban_forced: false,
            max_ping_rate_per_connection: 0,
            connection_share: 5,
            max_pong_rate: 0,
            max_empty_fragment_rate: 0,
            max_tiny_frame_rate: 0,
            tiny_frame_bytes: 8,
            max_close_rate: 0,
            tls: false,
            max_record_rate: 300,
            record_bytes: RecordBytes::default(),
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            on_full_flows: OnFullFlows::default(),
            on_full_sources: OnFullSources::default(),
            fragments: Fragments::default(),
            ports: Vec::new(),
            port_policies: Vec::new(),
            cidrs: Vec::new(),
            trusted_proxies: TrustedProxies::default(),
            client_from: ClientFrom::default(),
        }
    }
}

/// Maximum number of ports with their own settings.
pub const MOST_PORT_POLICIES: usize = SCOPES as usize - 1;

impl PolicySettings {
    /// Protect a port, with its own settings or without any.
    pub fn add_port(&mut self, port: u16, own: Overrides) -> Result<(), String> {
        if !self.ports.contains(&port) {
            self.ports.push(port);
            self.ports.sort_unstable();
        }
        if !own.is_empty() {
            self.port_policies.retain(|policy| policy.port != port);
            self.port_policies.push(PortPolicy { port, own });
            self.port_policies.sort_unstable_by_key(|policy| policy.port);
        }
        if self.port_policies.len() > MOST_PORT_POLICIES {
            return Err(format!(
                "port {port} is one too many with settings of its own: at most \
                 {MOST_PORT_POLICIES} ports can have some"
            ));
        }
        Ok(())
    }

    /// Add a network with its own settings.
    pub fn add_cidr(&mut self, network: NetworkPolicy) {
        self.cidrs.retain(|other| other.cidr != network.cidr);
        self.cidrs.push(network);
        self.cidrs.sort_unstable_by_key(|network| network.cidr);
    }
}
