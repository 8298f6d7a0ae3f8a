//! Companion server's settings that can change while connections are open.

use std::sync::Arc;

use super::server::ServerSection;
use ws_guard_server::{
    Config, HandlerKind,
    negotiation::{Negotiation, TableError},
    output_limit::OutputLimit,
    topics::rules::{InForce, RulesError},
};

/// Reason to refuse a changed section.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Rules(#[from] RulesError),
}

/// Parts of a server that follow the file's section.
#[derive(Clone, Debug)]
pub struct Reloadable {
    negotiation: Arc<Negotiation>,
    output: Arc<OutputLimit>,
    /// Rules of topics, if the server has topics.
    topics: Option<Arc<InForce>>,
}

impl Reloadable {
    /// Take these parts of a server's configuration.
    pub fn of(config: &Config) -> Reloadable {
        let topics = match &config.handler {
            HandlerKind::Topic(limits) => Some(limits.rules.clone()),
            _ => None,
        };
        let (negotiation, output) = (config.negotiation.clone(), config.output.clone());
        Reloadable { negotiation, output, topics }
    }

    /// Check whether [`Reloadable::set`] would accept the section.
    ///
    /// # Errors
    /// If it needs something that the server was not started with, or does not fit its topics.
    pub fn check(&self, section: &ServerSection) -> Result<(), ReloadError> {
        self.negotiation.check(&section.protocols)?;
        if let Some(topics) = &self.topics {
            topics.check(&section.topics)?;
        }
        Ok(())
    }

    /// Apply the section, completely or not at all.
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
