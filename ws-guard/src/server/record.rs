//! What is known and kept of a connection, for the log and for listings.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    cause::Cause,
    identity::Identity,
    protocol::{Close, code},
};

/// Which connection it is.
#[derive(Clone, Debug)]
pub struct Origin {
    /// From 1, in the order of handshakes.
    pub id: u64,
    /// The other end of TCP.
    pub peer: SocketAddr,
    /// The client, which may be behind it.
    pub client: IpAddr,
    pub identity: Option<Box<Identity>>,
    /// The region as metrics have it.
    pub region: Arc<str>,
    /// The subprotocol that was agreed.
    pub protocol: Option<Arc<str>>,
    /// When its TCP connection was accepted.
    pub started: Instant,
}

/// What a connection did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub pings_in: u64,
    pub pings_ignored: u64,
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
}

impl Ended {
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
