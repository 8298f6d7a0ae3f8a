//! Reference for tests of the guard: streams, networks, lying clients, and oracles.
//!
//! The oracles compute the right answers in the slow, obvious way. There is one generator for all
//! trackers of frames: the one on the host (`ws-guard-common/tests`), its fuzz targets, and the
//! kernel programs (`ws-guard/tests/differential`). [`link`] and [`liar`] decide what is sent;
//! between them and the [`receiver`] is a [`guard::Guard`].
//!
//! The oracles ([`frames`], [`head`], [`pings`]) are written from the RFCs, and share no code with
//! what they judge.
pub mod cases;
pub mod frames;
pub mod guard;
pub mod head;
pub mod liar;
pub mod link;
pub mod pings;
pub mod receiver;
pub mod sender;
pub mod streams;
pub mod transfer;
pub mod wire;
