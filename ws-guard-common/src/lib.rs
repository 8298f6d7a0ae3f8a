//! What ws-guard's kernel programs, daemon, capture inspector and companion server share.
//!
//! Everything here is pure: no allocation, no system call, no clock. The kernel programs compile it
//! for BPF, user space compiles it with the `user` feature, tests and fuzz targets run it on the
//! host. Read the modules in this order to know the product:
//!
//! 1. [`frame`] decodes one WebSocket frame header and names what can be wrong with it.
//! 2. [`tracker`] follows frames through a TCP byte stream by sequence number.
//! 3. [`flow`] adds what the guard knows of one connection: what the server acknowledged, what is
//!    provisional, how often it pinged; [`checkpoint`] is how it judges retransmissions.
//!    [`held`] is how it lets pass what comes behind a gap.
//! 4. [`search`] finds frames in a stream whose beginning nobody saw.
//! 5. [`window`] decides whether a ping is one too many.
//! 6. [`handshake`] finds the end of an HTTP upgrade and what was agreed in it.
//! 7. [`forwarded`] reads which client a trusted proxy speaks for.
//! 8. [`record`] decodes TLS record headers, which the same tracker follows where frames are hidden.
//! 9. [`maps`] is the layout of everything that crosses between kernel and user space.
//!
//! With the `user` feature, `replay` drives a flow over byte slices as the kernel programs do over
//! packets.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod checkpoint;
pub mod flood;
pub mod flow;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod held;
pub mod maps;
pub mod pace;
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
