//! Traces of connections, for exporters.

use std::{fmt, time::Duration};

use super::record::{Ended, Origin};

/// Non-blocking receiver of connection events.
pub trait Trace: fmt::Debug + Send + Sync {
    /// Process the end of a connection's handshake.
    fn opened(&self, origin: &Origin, ping_interval: Duration);

    /// Check whether a connection's message with this number, from 1, is traced.
    fn wants_message(&self, number: u64) -> bool;

    /// Process a message that was read, with its bytes and those waiting to be written.
    fn message(&self, origin: &Origin, ping_interval: Duration, bytes: usize, queue: usize);

    /// Return the id under which the trace of a connection is exported.
    fn id(&self, connection_id: u64) -> u128;

    /// Process the end of a connection.
    fn closed(&self, origin: &Origin, ping_interval: Duration, ended: &Ended);
}
