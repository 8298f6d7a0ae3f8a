//! Listening for metrics and control: limits of connections and descriptors.

pub mod descriptors;
pub mod http;

use std::{io, net::SocketAddr};
use ws_guard_server::listen::bind;

/// Listen on an address; to be called inside a runtime.
pub fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(bind(address, false)?)
}
