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

/// Identity of a connection.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Number, from 1, in the order of handshakes.
    pub id: u64,
    /// Other end of the TCP connection.
    pub peer: SocketAddr,
    /// Client, which may be behind the peer.
    pub client: Caller,
    pub identity: Option<Box<Identity>>,
    /// Region as in metrics.
    pub region: Arc<Region>,
    /// Agreed subprotocol.
    pub protocol: Option<Arc<str>>,
    /// Time at which its TCP connection was accepted.
    pub started: Instant,
    /// Time from then to the 101, in microseconds.
    pub handshake_us: u32,
}

impl Origin {
    /// Return the listing's fields, with `totals` and without other changing data.
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

/// Convert a time of this process to a time of day.
pub fn wall(instant: Instant) -> Timestamp {
    Timestamp(SystemTime::now() - instant.elapsed())
}

/// End of a connection.
#[derive(Clone, Debug)]
pub struct Ended {
    pub cause: Cause,
    /// Close frame of the peer.
    pub close: Option<Close>,
    /// Status code of this side's close frame, if written.
    pub sent: Option<u16>,
    pub totals: Totals,
    pub queued: usize,
    pub round_trip: Option<Duration>,
    pub last_pong: Option<SystemTime>,
    /// Last TCP state reported by the kernel.
    pub tcp: Option<TcpInfo>,
}

impl Ended {
    /// Return the reason in the peer's close frame, or else that of the cause.
    pub fn reason(&self) -> &str {
        let said = self.close.as_ref().map(|close| close.reason.as_str());
        said.filter(|reason| !reason.is_empty()).unwrap_or(self.cause.reason())
    }

    /// Return the status code as in RFC 6455, 7.1.5: the peer's, 1005 or 1006.
    /// 1005 is for none, 1006 for no frame. If this side closed and the peer agreed, it is this
    /// side's.
    pub fn code(&self) -> u16 {
        match (&self.close, self.cause) {
            (Some(close), _) => close.code,
            (None, Cause::Protocol(_) | Cause::SlowSender) => self.sent.unwrap_or(code::ABNORMAL),
            _ => code::ABNORMAL,
        }
    }
}
