//! Companion WebSocket server and its telemetry, independent of the guard.
//!
//! It needs no privilege. [`protocol`] is its protocol, without a socket; [`heartbeat`] detects
//! dead peers, without a clock. A [`connection`] is one future over both, [`shard`] the thread that
//! runs it, [`service`] the state shared by threads, and [`server`] all of them together.
//! [`telemetry`] exports events of connections, and any registry of metrics.
#![deny(unsafe_code)]

mod accept;
pub mod access_log;
pub mod admission;
mod asking;
mod bucket;
mod canary;
pub mod cause;
pub mod certificate;
mod charges;
pub mod coding;
pub mod config;
pub mod connection;
mod demo;
pub mod handler;
pub mod handshake;
pub mod heartbeat;
pub mod identity;
pub mod io;
pub mod journal;
pub mod listen;
mod memory_budget;
pub mod metrics;
pub mod negotiation;
pub mod noise_key;
pub mod origin;
mod outbox;
pub mod output_limit;
pub mod packets;
pub mod page_headers;
mod pem;
pub mod pings;
mod places;
mod pool;
pub mod protocol;
pub mod proxies;
mod readiness;
pub mod reconnects;
pub mod record;
pub mod refusal;
pub mod register;
pub mod regular;
pub mod routing;
pub mod seen;
pub mod seldom;
pub mod server;
pub mod service;
pub mod shard;
pub mod source;
pub mod specimen;
pub mod stall;
mod tcp_info;
pub mod telemetry;
pub mod timestamp;
pub mod tls;
pub mod token;
pub mod topics;
pub mod trace;
pub mod turn;
pub mod view;
pub mod watch;
pub mod wheel;

pub use config::{Config, HandlerKind};
pub use pings::{PingPolicy, PingRates, Pings};
pub use server::{Server, StartError};
