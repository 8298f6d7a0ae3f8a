//! Code shared by ws-guard's kernel programs, daemon, capture inspector and companion server.
//!
//! Everything here is pure: no allocation, no system call, no clock. The kernel programs compile it
//! for BPF, user space compiles it with the `user` feature, tests and fuzz targets run it on the
//! host. Read the modules in this order to know the product:
//!
//! 1. [`frame`] decodes one WebSocket frame header and names its violations.
//! 2. [`tracker`] follows frames through a TCP byte stream by sequence number.
//! 3. [`flow`] is the state of one connection: acknowledged and provisional bytes, and pings.
//!    [`ledger`] judges retransmissions, [`out_of_order`] out-of-order segments, and [`heartbeat`]
//!    matches pongs with their pings.
//! 4. [`search`] finds frames in a stream whose beginning was not seen.
//! 5. [`window`] decides whether a ping is over the limit.
//! 6. [`handshake`] finds the end of an HTTP upgrade and what was agreed in it.
//! 7. [`forwarded`] reads the client that a trusted proxy names.
//! 8. [`record`] decodes TLS record headers, which the same tracker follows where frames are hidden.
//! 9. [`maps`] is the layout of all data shared by kernel and user space.
//!
//! With the `user` feature, `replay` drives a flow over byte slices as the kernel programs do over
//! packets.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod chunks;
pub mod flood;
pub mod flow;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod heartbeat;
pub mod ledger;
pub mod maps;
pub mod offer;
pub mod out_of_order;
pub mod pace;
pub mod pages;
pub mod record;
#[cfg(feature = "user")]
pub mod replay;
pub mod search;
pub mod seq;
pub mod source;
pub mod tracker;
pub mod trail;
pub mod verifier;
pub mod window;
