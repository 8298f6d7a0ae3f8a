//! What a changed file changes of the companion server while connections are open.

use std::sync::Arc;

use super::server::ServerSection;
use ws_guard_server::{
    Config, HandlerKind,
    negotiation::{Negotiation, TableError},
    output_limit::OutputLimit,
    topics::rules::{InForce, RulesError},
};

/// Why a changed section is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Rules(#[from] RulesError),
}

/// The parts of a server that follow the file's section.
#[derive(Clone, Debug)]
pub struct Reloadable {
    negotiation: Arc<Negotiation>,
    output: Arc<OutputLimit>,
    /// Where it has topics.
    topics: Option<Arc<InForce>>,
}

impl Reloadable {
    /// Those of a server with this configuration.
    pub fn of(config: &Config) -> Reloadable {
        let topics = match &config.handler {
            HandlerKind::Topic(limits) => Some(limits.rules.clone()),
            _ => None,
        };
        let (negotiation, output) = (config.negotiation.clone(), config.output.clone());
        Reloadable { negotiation, output, topics }
    }

    /// Whether [`Reloadable::set`] would take it over.
    ///
    /// # Errors
    /// Where it wants something that the server was not started with, or that its topics cannot have.
    pub fn check(&self, section: &ServerSection) -> Result<(), ReloadError> {
        self.negotiation.check(&section.protocols)?;
        if let Some(topics) = &self.topics {
            topics.check(&section.topics)?;
        }
        Ok(())
    }

    /// Take the section over, all of it or nothing.
    ///
    /// # Errors
    /// As [`Reloadable::check`].
    pub fn set(&self, section: ServerSection) -> Result<(), ReloadError> {
        self.check(&section)?;
        if let Some(topics) = &self.topics {
            topics.set(section.topics)?;
        }
        self.negotiation.set(section.protocols)?;
        self.output.set(section.max_output);
        Ok(())
    }
}
