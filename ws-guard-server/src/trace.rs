//! Traces of connections, for whoever exports them.

use std::{fmt, time::Duration};

use super::record::{Ended, Origin};

/// Takes what happens to connections. Never waits.
pub trait Trace: fmt::Debug + Send + Sync {
    /// A connection's handshake is done.
    fn opened(&self, origin: &Origin, ping_interval: Duration);

    /// Whether a connection's message with this number, from 1, is traced.
    fn wants_message(&self, number: u64) -> bool;

    /// A message was read: its bytes, and those waiting to be written.
    fn message(&self, origin: &Origin, ping_interval: Duration, bytes: usize, queue: usize);

    /// The number that the trace of a connection is exported under.
    fn id(&self, connection_id: u64) -> u128;

    /// A connection ended.
    fn closed(&self, origin: &Origin, ping_interval: Duration, ended: &Ended);
}
