//! Assignment of subprotocols (RFC 6455, 1.9 and 4.2.2), by a table of rollouts.
//! The table may change while the server runs.

pub mod metrics;
pub mod offers;
pub mod share;
pub mod table;

use std::sync::{Arc, PoisonError, RwLock};

pub use share::Share;
pub use table::{Choice, Client, Features, Row, Table};

use super::noise_key::NoiseKey;

/// Name of the response's field for the protocol.
pub const VERSION_FIELD: &str = "x-ws-protocol-version";
/// Value in the log and in metrics where none was agreed.
pub const NONE: &str = "none";

/// Table in force, and the requirements of its features.
#[derive(Debug, Default)]
pub struct Negotiation {
    table: RwLock<Arc<Table>>,
    /// Key of this server for protocols with encryption.
    noise: Option<NoiseKey>,
}

/// Reason why a table cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error(
        "server.protocol: {0} encrypts, and the server has no key for that: make one with `openssl genpkey -algorithm x25519 -out FILE`, and name it with --noise-key"
    )]
    NoKey(Arc<str>),
}

impl Negotiation {
    /// Create the negotiation with a first table.
    ///
    /// # Errors
    /// If the table needs a key and there is none.
    pub fn new(table: Table, noise: Option<NoiseKey>) -> Result<Negotiation, TableError> {
        let negotiation = Negotiation { table: RwLock::default(), noise };
        negotiation.set(table)?;
        Ok(negotiation)
    }

    /// Return the table for the next handshake.
    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn noise_key(&self) -> Option<&NoiseKey> {
        self.noise.as_ref()
    }

    /// Check whether a table could be put in force.
    pub fn check(&self, table: &Table) -> Result<(), TableError> {
        let encrypts = table.rows.iter().find(|row| row.features.encryption);
        match encrypts.filter(|_| self.noise.is_none()) {
            Some(row) => Err(TableError::NoKey(row.answer.clone())),
            None => Ok(()),
        }
    }

    /// Put a table in force for new handshakes; open connections keep their protocol.
    ///
    /// # Errors
    /// As [`Negotiation::check`]; then the old one stays in force.
    pub fn set(&self, table: Table) -> Result<(), TableError> {
        self.check(&table)?;
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        Ok(())
    }
}
