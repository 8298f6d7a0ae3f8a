//! The companion server of `run --listen`, in a process of its own.
//!
//! HTTP, TLS, deflate, tokens and Noise read what strangers send; they have no place in the process
//! that may load programs into the kernel. So the daemon starts its own binary once more
//! ([`supervisor`]), which opens what it needs, gives up every privilege ([`privileges`]), and serves
//! ([`process`]). Both talk over one socket pair ([`channel`]): the daemon hands over descriptors and
//! asks, in HTTP over streams that it hands over as well ([`link`]); the server's process only
//! answers. The daemon survives its death, starts it again, and guards on meanwhile.

pub mod channel;
mod families;
pub mod link;
pub mod message;
mod privileges;
pub mod process;
pub mod relay;
pub mod supervisor;
