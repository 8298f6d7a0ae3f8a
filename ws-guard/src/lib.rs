//! The ws-guard daemon and command line.
pub mod guard;
