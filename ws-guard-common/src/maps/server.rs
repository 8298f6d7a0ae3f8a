//! Figures by server: heartbeats, ends of connections, framing.

use super::{Address, FlowKey};
use crate::{frame::Violation, heartbeat::Times};

/// Servers with figures of their own; all others share those in [`super::name::OTHERS`].
pub const SERVERS: u32 = 64;

/// Connections whose waiting pings are kept; those that pinged last, on either side.
pub const HEARTBEATS: u32 = 16_384;

/// A server: its address and protected port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServerKey {
    pub address: Address,
    /// In network byte order.
    pub port: u16,
    pub _pad: u16,
}

impl From<&FlowKey> for ServerKey {
    #[inline(always)]
    fn from(flow: &FlowKey) -> ServerKey {
        ServerKey { address: flow.server, port: flow.server_port, _pad: 0 }
    }
}

/// First sign of a connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    ClientFin = 0,
    ClientReset,
    ServerFin,
    ServerReset,
    /// None was seen: after a long silence the flow made room, or its end points were used again.
    Silence,
}

impl End {
    pub const COUNT: usize = 5;
    pub const ALL: [End; Self::COUNT] =
        [End::ClientFin, End::ClientReset, End::ServerFin, End::ServerReset, End::Silence];

    /// The label's value in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            End::ClientFin => "client_fin",
            End::ClientReset => "client_rst",
            End::ServerFin => "server_fin",
            End::ServerReset => "server_rst",
            End::Silence => "silence",
        }
    }
}

/// Segments of note in one direction.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Segments {
    /// More than one frame begins in them.
    pub coalesced: u64,
    /// Their end cuts a header.
    pub split_headers: u64,
    /// They begin before bytes that were seen already.
    pub retransmitted: u64,
    /// They begin behind bytes that were not seen yet.
    pub out_of_order: u64,
    /// Headers in them violate RFC 6455, by kind.
    pub violations: [u64; Violation::COUNT],
}

/// Figures of one server on one CPU. They only grow. Index 0 is the client's side, 1 the server's.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Server {
    /// Times from pings to their pongs, by the side that pinged.
    pub heartbeats: [Times; 2],
    /// Pings that were not answered, by the same.
    pub unanswered: [u64; 2],
    /// Connections by [`End`].
    pub ended: [u64; End::COUNT],
    /// By the sender of the segments.
    pub segments: [Segments; 2],
    /// Time of the latest of these, ns of CLOCK_MONOTONIC (coarse).
    pub last_ns: u64,
}

#[cfg(any(feature = "user", test))]
mod user {
    use super::{Server, Times};

    impl Server {
        /// Add what another CPU counted.
        pub fn add(&mut self, other: &Server) {
            let Server { heartbeats, unanswered, ended, segments, last_ns } = self;
            for (sum, one) in heartbeats.iter_mut().zip(&other.heartbeats) {
                let Times { buckets, sum_us } = sum;
                each(buckets, &one.buckets);
                *sum_us = sum_us.wrapping_add(one.sum_us);
            }
            each(unanswered, &other.unanswered);
            each(ended, &other.ended);
            for (sum, one) in segments.iter_mut().zip(&other.segments) {
                for (sum, one) in [
                    (&mut sum.coalesced, one.coalesced),
                    (&mut sum.split_headers, one.split_headers),
                    (&mut sum.retransmitted, one.retransmitted),
                    (&mut sum.out_of_order, one.out_of_order),
                ] {
                    *sum = sum.wrapping_add(one);
                }
                each(&mut sum.violations, &one.violations);
            }
            *last_ns = (*last_ns).max(other.last_ns);
        }
    }

    fn each(sum: &mut [u64], one: &[u64]) {
        for (sum, one) in sum.iter_mut().zip(one) {
            *sum = sum.wrapping_add(*one);
        }
    }
}
