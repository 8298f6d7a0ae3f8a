//! Configuration of `run`: flags, environment, file, defaults, highest first.
//! They are merged and validated together before anything is loaded or attached.

mod file;
mod layers;
mod problem;
pub mod reloadable;
mod run;
pub mod server;
mod settings;
#[cfg(test)]
mod tests;
mod topics;

pub use layers::{Arguments, Inputs, unknown_variables};
pub use problem::{ConfigError, Place, Problem};
pub use run::{LogFormat, RUN, RunSettings, listen_address};
pub use settings::Settings;
