//! Everything `run` can be told: flags, environment, file and defaults, in this order of precedence,
//! merged and validated together before anything is loaded or attached.

mod file;
mod layers;
pub mod reloadable;
pub mod server;
mod settings;
#[cfg(test)]
mod tests;

pub use layers::{Arguments, ConfigError, Inputs, Place, Problem, unknown_variables};
pub use settings::{LogFormat, RUN, RunSettings, Settings, listen_address};
