//! Configurations for HAProxy.
use std::net::SocketAddr;

/// What all have in common. The worker sees that its master was killed, and ends as well.
pub fn with(lines: &str) -> String {
    format!(
        "global
  maxconn 4096
  nbthread 1
defaults
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
{lines}"
    )
}

/// Where it listens; an IPv6 address has no brackets here.
pub fn bind(at: SocketAddr) -> String {
    format!("  bind {}:{} backlog 4096\n", at.ip(), at.port())
}

/// Speaks HTTP, and adds a line of `X-Forwarded-For`.
pub fn appending(at: SocketAddr, server: SocketAddr) -> String {
    let bind = bind(at);
    with(&format!("listen front\n  mode http\n  option forwardfor\n{bind}  server one {server}\n"))
}

/// Forwards bytes, with `send-proxy` or `send-proxy-v2` after a header with the client's address.
pub fn stream(at: SocketAddr, server: SocketAddr, how: &str) -> String {
    let bind = bind(at);
    with(&format!("listen front\n  mode tcp\n{bind}  server one {server} {how}\n"))
}
