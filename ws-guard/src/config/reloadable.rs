//! What a changed file changes of the companion server while connections are open.

use std::sync::Arc;

use super::server::ServerSection;
use ws_guard_server::{
    Config,
    negotiation::{Negotiation, TableError},
    output_limit::OutputLimit,
};

/// The parts of a server that follow the file's section.
#[derive(Clone, Debug)]
pub struct Reloadable {
    negotiation: Arc<Negotiation>,
    output: Arc<OutputLimit>,
}

impl Reloadable {
    /// Those of a server with this configuration.
    pub fn of(config: &Config) -> Reloadable {
        Reloadable { negotiation: config.negotiation.clone(), output: config.output.clone() }
    }

    /// Whether [`Reloadable::set`] would take it over.
    ///
    /// # Errors
    /// Where the table wants something that the server was not started with.
    pub fn check(&self, section: &ServerSection) -> Result<(), TableError> {
        self.negotiation.check(&section.protocols)
    }

    /// Take the section over, all of it or nothing.
    ///
    /// # Errors
    /// As [`Reloadable::check`].
    pub fn set(&self, section: ServerSection) -> Result<(), TableError> {
        self.negotiation.set(section.protocols)?;
        self.output.set(section.max_output);
        Ok(())
    }
}
