//! The companion server: its protocol without a socket, and the server itself on loopback. Nothing
//! here needs privileges.

mod autobahn;
mod client_certificates;
mod closing;
mod codec;
mod connections;
mod handshake;
mod hostile;
mod leaks;
mod memory;
mod packets;
mod pings;
mod rollout;
mod served;
mod stage;
mod stalls;
mod talk;
mod tls;
