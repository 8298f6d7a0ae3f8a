//! The companion server: its protocol without a socket, and the server itself on loopback. Nothing
//! here needs privileges.

mod codec;
