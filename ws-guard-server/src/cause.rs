//! Why a connection ended: one cause for each, the same in logs, metrics and listings.

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
    /// The server is late, and nobody was using the connection; or it has no memory left, and the
    /// connection held more than its share of it in an unfinished message.
    Shed,
    /// The server is shutting down.
    Shutdown,
}

impl Cause {
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
            Cause::Shutdown => code::GOING_AWAY,
        }
    }

    /// The close frame's reason, and what the log says.
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
