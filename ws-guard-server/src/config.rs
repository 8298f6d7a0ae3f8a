//! Limits and time-outs of the server.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    heartbeat::Times,
    identity::Access,
    negotiation::Negotiation,
    output_limit::OutputLimit,
    pings::Pings,
    protocol::{Limits, extension::DeflateOptions},
    proxies::Proxies,
    routing::Share,
    seen::Seen,
    stall::Thresholds,
    tls::Tls,
    topics::TopicLimits,
};
use crate::trace::Trace;

/// Processing of messages.
#[derive(Clone, Debug, Default)]
pub enum HandlerKind {
    /// Echo of each message to its sender.
    #[default]
    Echo,
    /// Publish and subscribe.
    Topic(Box<TopicLimits>),
}

/// Configuration of a server; its defaults are those of the command line.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Number of threads, each with its own connections.
    pub shards: usize,
    /// Maximum number of open connections; above it a handshake is refused with 503.
    pub max_connections: usize,
    /// Maximum number of open connections of a source; above it the refusal is 429.
    pub max_connections_per_source: usize,
    /// Maximum number of open connections of a user; above it the refusal is 429.
    pub max_connections_per_user: usize,
    /// Maximum number of new connections a second, and in a burst; 0: no limit.
    /// Above it a handshake is refused with 503.
    pub admission_rate: u32,
    /// This server's share of users; users of other clusters are refused with 421.
    pub user_cluster: Option<Share>,
    /// Admission, and identification of clients.
    pub access: Access,
    /// TLS settings; with them, the server speaks TLS only.
    pub tls: Option<Arc<Tls>>,
    /// Assignment of subprotocols.
    pub negotiation: Arc<Negotiation>,
    /// Record of pings inside TLS, which no guard in front of the server can see.
    pub seen: Option<Arc<Seen>>,
    /// Trusted proxies.
    pub proxies: Proxies,
    /// Maximum number of pending handshakes; further ones are dropped unanswered.
    /// At most half of them are of one source, except trusted proxies.
    pub max_handshakes: usize,
    /// Time that a new connection waits in the kernel's queue before that.
    pub handshake_wait: Duration,
    /// Time from the TCP connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Maximum size of a request in bytes, headers included.
    pub max_request: usize,
    /// Limits of messages and their fragments.
    pub limits: Limits,
    /// Limit of pending output in bytes, above which nothing more is read.
    pub output: Arc<OutputLimit>,
    /// Maximum number of bytes that all connections together hold in buffers.
    /// Above it new connections are refused with 503, and the limit of pending output is lower.
    pub memory_budget: usize,
    /// Maximum time for which the socket accepts no byte of pending output.
    pub write_timeout: Duration,
    /// Maximum duration of a frame, plus a second for each KiB received.
    pub frame_timeout: Duration,
    /// Maximum time from a close frame to the peer's answer and the end of its stream.
    pub close_timeout: Duration,
    /// Time for which the server still accepts connections during shutdown.
    /// It is not ready meanwhile, so that load balancers can stop sending clients.
    pub shutdown_delay: Duration,
    /// Time over which connections are closed, to spread the reconnecting clients.
    pub shutdown_spread: Duration,
    /// Time for all connections to end after that.
    pub drain_timeout: Duration,
    pub heartbeat: Times,
    /// Thresholds of a stall, and its consequences.
    pub stalls: Thresholds,
    /// Definition of a source, and limits of answered pings.
    pub pings: Arc<Pings>,
    /// Processing of messages.
    pub handler: HandlerKind,
    /// `true` if requests other than handshakes may get the demonstration page.
    pub demo_page: bool,
    /// Additional receiver of connection events.
    pub trace: Option<Arc<dyn Trace>>,
    /// permessage-deflate, unless disabled.
    pub deflate: Option<DeflateOptions>,
}

impl Config {
    /// Create a configuration for `listen`, with defaults for everything else.
    pub fn new(listen: SocketAddr) -> Config {
        Config {
            listen,
            shards: std::thread::available_parallelism().map_or(1, usize::from),
            max_connections: 16_384,
            max_connections_per_source: 16_384,
            max_connections_per_user: 16_384,
            admission_rate: 0,
            user_cluster: None,
            access: Access::default(),
            tls: None,
            negotiation: Arc::default(),
            seen: None,
            proxies: Proxies::default(),
            max_handshakes: 1024,
            handshake_wait: Duration::from_millis(250),
            handshake_timeout: Duration::from_secs(10),
            max_request: 16 * 1024,
            limits: Limits::default(),
            output: Arc::default(),
            memory_budget: 512 << 20,
            write_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            shutdown_delay: Duration::ZERO,
            shutdown_spread: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
            heartbeat: Times::default(),
            stalls: Thresholds::default(),
            pings: Arc::default(),
            handler: HandlerKind::Echo,
            demo_page: false,
            trace: None,
            deflate: Some(DeflateOptions::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Format a number as in the documentation.
    fn grouped(number: usize) -> String {
        let digits = number.to_string();
        let groups = digits.as_bytes().rchunks(3).rev();
        let groups: Vec<_> = groups.map(|group| String::from_utf8_lossy(group)).collect();
        groups.join(",")
    }

    #[test]
    fn documented_limits_are_the_defaults() {
        let config = Config::new(([127, 0, 0, 1], 0).into());
        assert_eq!(config.max_connections, config.max_connections_per_source);
        assert_eq!(config.max_connections, config.max_connections_per_user);
        let seconds = |time: Duration| format!("{} s", time.as_secs());
        let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
        let topics = TopicLimits::default();
        let document = include_str!("../../docs/server.md");
        for (what, limit) in [
            ("connections; of one source; of one user", grouped(config.max_connections)),
            ("handshakes at a time; half of them", grouped(config.max_handshakes)),
            ("time for a handshake", seconds(config.handshake_timeout)),
            ("size of a request", format!("{} KiB, 100 fields", config.max_request >> 10)),
            ("message, as sent and decompressed", mib(config.limits.message)),
            ("fragments of a message", grouped(config.limits.fragments as usize)),
            ("time for a frame", seconds(config.frame_timeout)),
            ("no byte taken by the client's socket", seconds(config.write_timeout)),
            ("closing", seconds(config.close_timeout)),
            ("publications that wait", grouped(topics.mailbox.messages)),
            ("topics of a connection", grouped(topics.topics)),
            ("buffers of all connections together", mib(config.memory_budget)),
        ] {
            let row = document.lines().find(|line| line.starts_with(&format!("| {what}")));
            let row = row.unwrap_or_else(|| panic!("no row about {what}"));
            let said = row.split('|').nth(2).unwrap_or_default().trim();
            assert!(said.starts_with(&limit), "{what}: {limit}, and the document says {said}");
        }
    }
}
