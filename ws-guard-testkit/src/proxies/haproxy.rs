//! Configurations for HAProxy.
use std::net::SocketAddr;

/// Return a configuration with the common settings.
/// The worker detects that its master was killed, and ends as well.
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

/// Format a listening address; an IPv6 one has no brackets here.
pub fn bind(at: SocketAddr) -> String {
    format!("  bind {}:{} backlog 4096\n", at.ip(), at.port())
}

/// Configure HTTP with a line of `X-Forwarded-For` added.
pub fn appending(at: SocketAddr, server: SocketAddr) -> String {
    let bind = bind(at);
    with(&format!("listen front\n  mode http\n  option forwardfor\n{bind}  server one {server}\n"))
}

/// Configure forwarding of bytes, with `send-proxy` or `send-proxy-v2` as `how`.
/// These put a header with the client's address in front.
pub fn stream(at: SocketAddr, server: SocketAddr, how: &str) -> String {
    let bind = bind(at);
    with(&format!("listen front\n  mode tcp\n{bind}  server one {server} {how}\n"))
}
