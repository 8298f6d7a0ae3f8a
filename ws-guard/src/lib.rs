//! The ws-guard daemon and command line. Read it from the outside in: [`cli`] is what a user types,
//! [`daemon`] what `run` does, [`companion`] the process that serves for it, [`control`] how daemon and
//! command line talk, [`domain`] what they talk about, [`guard`] where the kernel begins.
pub mod cli;
pub mod companion;
pub mod config;
pub mod control;
pub mod daemon;
pub mod domain;
pub mod guard;
pub mod listener;
pub mod metrics;
