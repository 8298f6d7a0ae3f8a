//! Opening of a connection: its upgrade request, the server's answer, and the client's identity.
//!
//! [`handshake`] reads both heads and opens the flow at the answer. [`pending_upgrades`] keeps requests
//! until then, [`identify`] concludes which client sent one, and [`role`] decides which of two guarded
//! interfaces on the way follows the flow.

pub mod handshake;
pub mod identify;
pub mod pending_upgrades;
pub mod role;
