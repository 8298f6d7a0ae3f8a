//! What operators and the configuration decide, written into the maps and into the state file.

pub mod error;
mod networks;
pub mod policy;
mod regroup;
pub mod reports;
mod restore;
pub mod state_file;
pub mod throttling;
