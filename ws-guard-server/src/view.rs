//! One connection of the companion server, as in `connections` and `connection`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// Activity of a connection, as in the access log and listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub pings_in: u64,
    pub pings_ignored: u64,
}

/// TCP state of a connection, as in `ss -i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpView {
    /// Smoothed round-trip time, and its mean deviation.
    pub rtt_ms: f64,
    pub rtt_deviation_ms: f64,
    /// Number of segments retransmitted since the beginning.
    pub retransmitted: u32,
    /// Number of segments that the client has not acknowledged.
    pub unacknowledged: u32,
}

/// Connection in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionView {
    /// Number, from 1, in the order of handshakes.
    pub id: u64,
    /// Other end of the TCP connection.
    pub peer: String,
    /// Client's address, which may be behind the peer.
    pub client: String,
    pub user_id: Option<String>,
    pub region: Option<String>,
    /// `idle`, `handshaking`, `active`, `suspect`, `dead`, `closing` or `closed`.
    /// `idle`: not pinged yet; `handshaking`: the first ping waits; `suspect`: a pong is late.
    pub state: Cow<'static, str>,
    /// Time at which its TCP connection was accepted.
    pub opened: Timestamp,
    pub closed: Option<Timestamp>,
    /// Cause of its end, or ending, as in the metric `wsguard_server_closed_total`.
    pub cause: Option<Cow<'static, str>>,
    /// Status code of a closed one, as in RFC 6455, 7.1.5.
    pub code: Option<u16>,
    pub handshake_duration_ms: f64,
    pub ping_interval_ms: u64,
    pub last_pong: Option<Timestamp>,
    /// Time from the latest answered ping to its pong.
    pub heartbeat_rtt_ms: Option<f64>,
    /// Number of pending bytes; of a closed one, that of bytes left unwritten.
    pub message_queue_size: u64,
    #[serde(flatten)]
    pub totals: Totals,
    /// TCP state reported by the kernel; of a closed one, the last.
    pub tcp: Option<TcpView>,
    /// Subscribed topics.
    pub topics: Vec<String>,
}

/// Event of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoryEvent {
    pub time: Timestamp,
    pub connection_id: u64,
    /// `opened`, `state`, `closing`, `closed`, `missed`, and more while it is followed.
    /// Those are `ping_sent`, `pong`, `ping`, `message`, `subscribed`, `unsubscribed`, `dropped`.
    pub event: Cow<'static, str>,
    /// Details of the event.
    pub what: String,
}

/// Connection and its recorded events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionStory {
    pub connection: ConnectionView,
    /// Events, the oldest first.
    /// A server keeps its latest few thousand, of all connections.
    pub story: Vec<StoryEvent>,
}
