//! Record of a connection, for the log and for listings.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    cause::Cause,
    identity::Identity,
    metrics::Region,
    protocol::{Close, code},
    proxies::Caller,
    tcp_info::TcpInfo,
};
pub use crate::view::Totals;
use crate::{timestamp::Timestamp, view::ConnectionView};

/// Which connection it is.
#[derive(Clone, Debug)]
pub struct Origin {
    /// From 1, in the order of handshakes.
    pub id: u64,
    /// The other end of TCP.
    pub peer: SocketAddr,
    /// The client, which may be behind it.
    pub client: Caller,
    pub identity: Option<Box<Identity>>,
    /// The region as metrics have it.
    pub region: Arc<Region>,
    /// The subprotocol that was agreed.
    pub protocol: Option<Arc<str>>,
    /// When its TCP connection was accepted.
    pub started: Instant,
    /// From then to the 101, in microseconds.
    pub handshake_us: u32,
}

impl Origin {
    /// What listings show of it, with `totals` and nothing that changes else.
    pub fn view(&self, totals: &Totals, ping_interval: Duration) -> ConnectionView {
        let identity = self.identity.as_deref();
        let named = |field: fn(&Identity) -> &Option<Box<str>>| {
            identity.and_then(|identity| field(identity).as_deref()).map(String::from)
        };
        ConnectionView {
            id: self.id,
            peer: self.peer.to_string(),
            client: self.client.to_string(),
            user_id: named(|identity| &identity.user_id),
            region: named(|identity| &identity.region),
            state: "".into(),
            opened: wall(self.started),
            closed: None,
            cause: None,
            code: None,
            handshake_duration_ms: f64::from(self.handshake_us) / 1e3,
            ping_interval_ms: ping_interval.as_millis() as u64,
            last_pong: None,
            heartbeat_rtt_ms: None,
            message_queue_size: 0,
            totals: *totals,
            tcp: None,
            topics: Vec::new(),
        }
    }
}

/// A moment of this process as a time of day.
pub fn wall(instant: Instant) -> Timestamp {
    Timestamp(SystemTime::now() - instant.elapsed())
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub cause: Cause,
    /// The peer's close frame.
    pub close: Option<Close>,
    /// The close frame that this side wrote, if it was written.
    pub sent: Option<u16>,
    pub totals: Totals,
    pub queued: usize,
    pub round_trip: Option<Duration>,
    pub last_pong: Option<SystemTime>,
    /// What the kernel said of it last.
    pub tcp: Option<TcpInfo>,
}

impl Ended {
    /// What the peer's close frame says, or else what there is to say of the cause.
    pub fn reason(&self) -> &str {
        let said = self.close.as_ref().map(|close| close.reason.as_str());
        said.filter(|reason| !reason.is_empty()).unwrap_or(self.cause.reason())
    }

    /// The status code as RFC 6455, 7.1.5 has it: the peer's, or 1005 for none, 1006 for no frame.
    /// Of a connection that this side closed and the peer agreed, this side's.
    pub fn code(&self) -> u16 {
        match (&self.close, self.cause) {
            (Some(close), _) => close.code,
            (None, Cause::Protocol(_) | Cause::SlowSender) => self.sent.unwrap_or(code::ABNORMAL),
            _ => code::ABNORMAL,
        }
    }
}
