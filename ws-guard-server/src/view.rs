//! One connection of the companion server, as `connections` and `connection` show it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// What a connection did, as the access log and listings say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub pings_in: u64,
    pub pings_ignored: u64,
}

/// A connection's TCP, as `ss -i` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TcpView {
    /// The smoothed round-trip time, and its mean deviation.
    pub rtt_ms: f64,
    pub rtt_deviation_ms: f64,
    /// Segments sent again, from the beginning.
    pub retransmitted: u32,
    /// Segments that the client has not acknowledged.
    pub unacknowledged: u32,
}

/// A connection in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionView {
    /// From 1, in the order of handshakes.
    pub id: u64,
    /// The other end of TCP.
    pub peer: String,
    /// The client's address, which may be behind it.
    pub client: String,
    pub user_id: Option<String>,
    pub region: Option<String>,
    /// `idle` (not pinged yet), `handshaking` (the first ping waits), `active`, `suspect` (a pong is
    /// late), `dead`, `closing` or `closed`.
    pub state: Cow<'static, str>,
    /// When its TCP connection was accepted.
    pub opened: Timestamp,
    pub closed: Option<Timestamp>,
    /// Why it ended, or is ending: as in the metric `wsguard_server_closed_total`.
    pub cause: Option<Cow<'static, str>>,
    /// The status code of a closed one, as RFC 6455, 7.1.5 has it.
    pub code: Option<u16>,
    pub handshake_duration_ms: f64,
    pub ping_interval_ms: u64,
    pub last_pong: Option<Timestamp>,
    /// From the latest answered ping to its pong.
    pub heartbeat_rtt_ms: Option<f64>,
    /// Bytes that wait to be written; of a closed one, that were not written any more.
    pub message_queue_size: u64,
    #[serde(flatten)]
    pub totals: Totals,
    /// What the kernel says of its TCP; of a closed one, said last.
    pub tcp: Option<TcpView>,
    /// What it has subscribed to.
    pub topics: Vec<String>,
}

/// Something that happened to a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoryEvent {
    pub time: Timestamp,
    pub connection_id: u64,
    /// `opened`, `state`, `closing`, `closed`, `missed`; while it is followed also
    /// `ping_sent`, `pong`, `ping`, `message`, `subscribed`, `unsubscribed`, `dropped`.
    pub event: Cow<'static, str>,
    /// What there is to say of it.
    pub what: String,
}

/// A connection and what is remembered of its story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionStory {
    pub connection: ConnectionView,
    /// The oldest first. A server remembers its latest few thousand events, whoever's they are.
    pub story: Vec<StoryEvent>,
}
