//! The companion WebSocket server.
//!
//! [`protocol`] is what it speaks, without a socket; [`heartbeat`] how it tells the living from the
//! dead, without a clock. A [`connection`] is one future over both, [`shard`] the thread that it
//! lives on, and [`service`] all of them together.

pub mod access_log;
pub mod admission;
mod asking;
mod canary;
pub mod cause;
pub mod certificate;
mod charges;
pub mod coding;
pub mod config;
pub mod connection;
pub mod handler;
pub mod handshake;
pub mod heartbeat;
mod held;
pub mod identity;
pub mod io;
pub mod journal;
pub mod metrics;
pub mod negotiation;
pub mod origin;
mod outbox;
pub mod output_limit;
pub mod packets;
pub mod pings;
mod places;
mod pool;
pub mod protocol;
pub mod proxies;
mod readiness;
pub mod reconnects;
pub mod record;
pub mod seen;
pub mod service;
pub mod shard;
pub mod stall;
pub mod tls;
pub mod token;
pub mod topics;
pub mod turn;
pub mod wheel;

pub use config::{Config, HandlerKind};
pub use pings::{PingPolicy, PingRates, Pings};
pub use service::{Server, StartError};
