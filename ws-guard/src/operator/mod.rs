//! Operators' and the configuration's decisions, written to maps and state file.

pub mod error;
mod networks;
pub mod policy;
mod regroup;
pub mod reports;
mod restore;
pub mod state_file;
pub mod throttling;
