//! The companion WebSocket server. [`protocol`] is what it speaks, without a socket.

pub mod protocol;
