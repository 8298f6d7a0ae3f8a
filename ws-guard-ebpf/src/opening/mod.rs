//! Opening of a connection: its upgrade request, the server's answer, and the client's identity.
//!
//! [`handshake`] reads both heads and opens the flow at the answer, which [`merged`] finds behind others.
//! [`pending_upgrades`] keeps requests until then, [`pieces`] their segments, [`identify`] concludes which
//! client sent one, [`chunks`] follows chunked bodies, [`scale`] judges the scale of the client's windows, and [`role`] decides
//! which of two guarded interfaces on the way follows the flow.

pub mod chunks;
pub mod handshake;
pub mod identify;
pub mod merged;
pub mod pending_upgrades;
pub mod pieces;
pub mod role;
pub mod scale;
