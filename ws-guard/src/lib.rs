//! The ws-guard daemon and command line. Read it from the outside in: [`cli`] is what a user types,
//! [`daemon`] what `run` does, [`companion`] the process that serves for it, [`metrics`] what is
//! scraped, [`api`] how daemon and command line talk, [`state`] what the daemon's parts share,
//! [`operator`] what is decided, [`domain`] what they talk about, [`guard`] where the kernel begins.
//! Each of these imports only from those named after it, from [`config`] and from [`listener`].
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
