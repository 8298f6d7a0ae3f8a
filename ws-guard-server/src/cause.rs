//! Causes of closed connections, the same in logs, metrics and listings.

use std::{borrow::Cow, ops::RangeInclusive, time::Duration};

use super::{
    heartbeat::Action,
    protocol::{ProtocolError, code},
};

/// Cause of a connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Close frame from the peer.
    PeerClosed,
    /// End or failure of the peer's TCP stream without a close frame.
    PeerVanished,
    /// Peer that sent bytes, but answered no ping.
    PingTimeout,
    /// Peer that sent nothing any more, as when a NAT dropped the connection.
    Silence,
    /// Peer that did not read what it was sent.
    SlowReader,
    /// Peer that began a frame and did not continue it.
    SlowSender,
    /// Violation of the protocol, or of one of its limits.
    Protocol(ProtocolError),
    /// Overload of the server.
    /// It is late and the connection was idle, or it has no memory left and the connection held
    /// more than its share in an unfinished message.
    Shed,
    /// Shutdown of the server.
    Shutdown,
}

impl Cause {
    /// All values of [`Cause::name`].
    pub const NAMES: [&str; 9] = [
        Cause::PeerClosed.name(),
        Cause::PeerVanished.name(),
        Cause::PingTimeout.name(),
        Cause::Silence.name(),
        Cause::SlowReader.name(),
        Cause::SlowSender.name(),
        Cause::Protocol(ProtocolError::Utf8).name(),
        Cause::Shed.name(),
        Cause::Shutdown.name(),
    ];

    /// Return the name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::PeerClosed => "peer_closed",
            Cause::PeerVanished => "peer_vanished",
            Cause::PingTimeout => "ping_timeout",
            Cause::Silence => "silence",
            Cause::SlowReader => "slow_reader",
            Cause::SlowSender => "slow_sender",
            Cause::Protocol(_) => "protocol_error",
            Cause::Shed => "shed",
            Cause::Shutdown => "shutdown",
        }
    }

    /// Check for an error: not a close frame of the peer, nor a decision of the server.
    pub const fn is_error(self) -> bool {
        !matches!(self, Cause::PeerClosed | Cause::Shed | Cause::Shutdown)
    }

    /// Return the code for the close frame, where still possible (RFC 6455, 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Cause::PeerClosed => code::NORMAL,
            Cause::PeerVanished => code::ABNORMAL,
            Cause::PingTimeout | Cause::Silence => code::INTERNAL_ERROR,
            Cause::SlowReader | Cause::SlowSender => code::POLICY_VIOLATION,
            Cause::Protocol(error) => error.close_code(),
            Cause::Shed => code::TRY_AGAIN_LATER,
            Cause::Shutdown => code::SERVICE_RESTART,
        }
    }

    /// Return the log's text, with which the close frame's reason begins.
    /// See [`Cause::told`].
    pub const fn reason(self) -> &'static str {
        match self {
            Cause::PeerClosed => "",
            Cause::PeerVanished => "ended without a close frame",
            Cause::PingTimeout => "ping timeout",
            Cause::Silence => "ping timeout: nothing came any more",
            Cause::SlowReader => "reads too slowly",
            Cause::SlowSender => "sends too slowly",
            Cause::Protocol(error) => error.name(),
            Cause::Shed => "server is busy",
            Cause::Shutdown => "server is shutting down",
        }
    }
}

/// Reconnect delays in ms of clients closed because the server is busy.
const BUSY: RangeInclusive<u64> = 1000..=5000;
/// Minimum spread of the clients' reconnect delays.
const SOON: Duration = Duration::from_secs(1);

impl Cause {
    /// Return the close reason, with a reconnect delay unless the client is at fault.
    /// The delay is drawn at random over the time in which the server is left.
    pub fn told(self, spread: Duration) -> Cow<'static, str> {
        let after = match self {
            Cause::Shutdown => fastrand::u64(0..=spread.max(SOON).as_millis() as u64),
            Cause::Shed => fastrand::u64(BUSY),
            _ => return self.reason().into(),
        };
        format!("{}, retry-after-ms={after}", self.reason()).into()
    }
}

impl From<Action> for Cause {
    /// Convert the heartbeat's action; its pings end nothing.
    fn from(action: Action) -> Cause {
        match action {
            Action::Unanswered | Action::Ping(_) => Cause::PingTimeout,
            Action::Silent => Cause::Silence,
            Action::NotReading => Cause::SlowReader,
        }
    }
}
