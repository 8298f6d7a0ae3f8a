//! Which subprotocol a client gets (RFC 6455, 1.9 and 4.2.2): a table of what is rolled out to whom,
//! which may change while the server runs.

pub mod metrics;
pub mod offers;
pub mod share;
pub mod table;

use std::sync::{Arc, PoisonError, RwLock};

pub use share::Share;
pub use table::{Choice, Client, Features, Row, Table};

use super::noise_key::NoiseKey;

/// Name of the response's field that says which protocol it is.
pub const VERSION_FIELD: &str = "x-ws-protocol-version";
/// Value in the log and in metrics where none was agreed.
pub const NONE: &str = "none";

/// The table in force, and what its features need.
#[derive(Debug, Default)]
pub struct Negotiation {
    table: RwLock<Arc<Table>>,
    /// This server's key for protocols that encrypt.
    noise: Option<NoiseKey>,
}

/// Why a table cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error(
        "server.protocol: {0} encrypts, and the server has no key for that: make one with `openssl genpkey -algorithm x25519 -out FILE`, and name it with --noise-key"
    )]
    NoKey(Arc<str>),
}

impl Negotiation {
    /// # Errors
    /// When the table needs a key and there is none.
    pub fn new(table: Table, noise: Option<NoiseKey>) -> Result<Negotiation, TableError> {
        let negotiation = Negotiation { table: RwLock::default(), noise };
        negotiation.set(table)?;
        Ok(negotiation)
    }

    /// The table for the next handshake.
    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn noise_key(&self) -> Option<&NoiseKey> {
        self.noise.as_ref()
    }

    /// Whether a table could be put in force.
    pub fn check(&self, table: &Table) -> Result<(), TableError> {
        let encrypts = table.rows.iter().find(|row| row.features.encryption);
        match encrypts.filter(|_| self.noise.is_none()) {
            Some(row) => Err(TableError::NoKey(row.answer.clone())),
            None => Ok(()),
        }
    }

    /// Put a table in force, for handshakes from now on. Connections that are open keep theirs.
    ///
    /// # Errors
    /// As [`Negotiation::check`]; then the old one stays in force.
    pub fn set(&self, table: Table) -> Result<(), TableError> {
        self.check(&table)?;
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        Ok(())
    }
}
