//! The companion server: its protocol without a socket, and itself on loopback.
//! Nothing here needs privileges.

mod autobahn;
mod bus_tls;
mod client_certificates;
mod closing;
mod collector;
mod connections;
mod edge;
mod fleet;
mod handshake;
mod heartbeat;
mod history;
mod hostile;
mod leaks;
mod leaving;
mod long_work;
mod memory;
mod output;
mod path;
mod pings;
mod process;
mod readiness;
mod rollout;
mod served;
mod stage;
mod stalls;
mod talk;
mod telemetry;
mod tls;
mod topics;
