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

/// What becomes of messages.
#[derive(Clone, Debug, Default)]
pub enum HandlerKind {
    /// They go back to their sender.
    #[default]
    Echo,
    /// Publish and subscribe.
    Topic(Box<TopicLimits>),
}

/// Everything a server has to be told. The defaults are those of the command line.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Threads, each with connections of its own.
    pub shards: usize,
    /// Open connections, all together; above that a handshake is answered with 503.
    pub max_connections: usize,
    /// Open connections of one source; above that a handshake is answered with 429.
    pub max_connections_per_source: usize,
    /// Open connections of one user; above that a handshake is answered with 429.
    pub max_connections_per_user: usize,
    /// New connections a second, and as many at once; above that a handshake is answered with 503. 0 is
    /// no such limit.
    pub admission_rate: u32,
    /// Users of other clusters are answered with 421.
    pub user_cluster: Option<Share>,
    /// Admission, and identification of clients.
    pub access: Access,
    /// With a certificate, the server speaks TLS only.
    pub tls: Option<Arc<Tls>>,
    /// Assignment of subprotocols.
    pub negotiation: Arc<Negotiation>,
    /// Where pings are noted that no guard in front of the server can see: those inside TLS.
    pub seen: Option<Arc<Seen>>,
    /// Proxies that are believed.
    pub proxies: Proxies,
    /// Connections whose handshake is not done; above that a new one is dropped unanswered. Half of
    /// them at most are of one source, trusted proxies left out.
    pub max_handshakes: usize,
    /// How long a new one waits in the kernel's queue before that, for one of them to end.
    pub handshake_wait: Duration,
    /// From the TCP connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Size of a request in bytes, all headers included.
    pub max_request: usize,
    /// Messages and their fragments.
    pub limits: Limits,
    /// Bytes that may be on their way to a connection before nothing more is read from it.
    pub output: Arc<OutputLimit>,
    /// Bytes that all connections together may hold in buffers. Above it new connections are refused
    /// with 503, and each may have less output waiting.
    pub memory_budget: usize,
    /// How long the socket may take no byte while there are some to write.
    pub write_timeout: Duration,
    /// Maximum duration of a frame, plus a second for each KiB received.
    pub frame_timeout: Duration,
    /// From a close frame to the peer's answer and the end of its TCP stream.
    pub close_timeout: Duration,
    /// How long the server goes on accepting once it is told to end. Meanwhile it is not ready, so that
    /// whoever sends clients to it can stop.
    pub shutdown_delay: Duration,
    /// Over which connections are closed at the end, so that their clients come back one after another.
    pub shutdown_spread: Duration,
    /// For all connections together at the end, after that.
    pub drain_timeout: Duration,
    pub heartbeat: Times,
    /// What is a stall, and what is done about it.
    pub stalls: Thresholds,
    /// What makes a source, and how many of its pings are answered.
    pub pings: Arc<Pings>,
    /// What becomes of messages.
    pub handler: HandlerKind,
    /// Requests that are no handshake may get a page to try messaging on.
    pub demo_page: bool,
    /// What happens to connections goes there as well.
    pub trace: Option<Arc<dyn Trace>>,
    /// permessage-deflate, unless it is switched off.
    pub deflate: Option<DeflateOptions>,
}

impl Config {
    /// A server on `listen` with everything else at its default.
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

    /// A number as documents write it.
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
