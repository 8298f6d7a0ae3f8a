//! Causes of closed connections: one for each, the same in logs, metrics and listings.

use std::{borrow::Cow, ops::RangeInclusive, time::Duration};

use super::{
    heartbeat::Action,
    protocol::{ProtocolError, code},
};

/// Who or what ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer sent a close frame.
    PeerClosed,
    /// The peer's TCP ended or broke without one.
    PeerVanished,
    /// The peer sent bytes, but answered no ping.
    PingTimeout,
    /// Nothing came any more, as when a NAT forgot the connection.
    Silence,
    /// The peer did not read what it was sent.
    SlowReader,
    /// The peer began a frame and did not go on with it.
    SlowSender,
    /// The peer broke the protocol or a limit of it.
    Protocol(ProtocolError),
    /// The server is late, and the connection was idle; or it has no memory left, and the
    /// connection held more than its share of it in an unfinished message.
    Shed,
    /// The server is shutting down.
    Shutdown,
}

impl Cause {
    /// Every [`Cause::name`].
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

    /// The name in logs and metrics.
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

    /// Something went wrong: not a close frame of the peer, and nothing that the server decided.
    pub const fn is_error(self) -> bool {
        !matches!(self, Cause::PeerClosed | Cause::Shed | Cause::Shutdown)
    }

    /// What to send in the close frame (RFC 6455, 7.4.1), where one can still be sent.
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

    /// What the log says, and what the close frame's reason begins with: [`Cause::told`].
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

/// A client that is closed because the server is busy comes back after any of these times, in ms.
const BUSY: RangeInclusive<u64> = 1000..=5000;
/// Where connections are not closed over a longer time, their clients come back over this one.
const SOON: Duration = Duration::from_secs(1);

impl Cause {
    /// The close frame's reason: with a time to come back after where the client is not at fault, drawn
    /// at random over the time in which the server is left.
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
    /// What a heartbeat found; its pings end nothing.
    fn from(action: Action) -> Cause {
        match action {
            Action::Unanswered | Action::Ping(_) => Cause::PingTimeout,
            Action::Silent => Cause::Silence,
            Action::NotReading => Cause::SlowReader,
        }
    }
}
