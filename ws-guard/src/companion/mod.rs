//! Companion server of `run --listen`, in a process of its own.
//!
//! HTTP, TLS, deflate, tokens and Noise parse untrusted input, and have no place in the process
//! that may load programs into the kernel. So the daemon starts its own binary once more
//! ([`supervisor`]), which opens what it needs, drops every privilege ([`privileges`]), and serves
//! ([`process`]). Both communicate over one socket pair ([`channel`]): the daemon hands over
//! descriptors and sends requests, in HTTP over streams that it hands over as well ([`link`]); the
//! server's process only answers. The daemon survives its death, restarts it, and guards on
//! meanwhile.

pub mod channel;
mod families;
pub mod link;
pub mod message;
mod privileges;
pub mod process;
pub mod relay;
pub mod supervisor;
