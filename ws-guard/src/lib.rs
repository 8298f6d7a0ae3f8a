//! The ws-guard daemon and command line.
//!
//! From the outside in: [`cli`] is the command line, [`daemon`] the work of `run`, [`companion`]
//! the process that serves for it, [`metrics`] the scraped figures, [`api`] the interface between
//! daemon and command line, [`state`] the shared state of the daemon's parts, [`operator`] the
//! decisions, [`domain`] their vocabulary, [`guard`] the interface to the kernel. Each of these
//! imports only from those named after it, from [`config`] and from [`listener`].
pub mod api;
pub mod cli;
pub mod companion;
pub mod config;
pub mod daemon;
pub mod domain;
pub mod guard;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod operator;
pub mod page;
pub mod state;
