//! Log of `run` and `serve`; its level can be changed while they run.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::config::LogFormat;

/// Filter in force, whatever the format of the log.
trait Level: Send + Sync {
    fn get(&self) -> Result<String, reload::Error>;
    fn set(&self, filter: EnvFilter) -> Result<(), reload::Error>;
}

impl<S: Send + Sync + 'static> Level for reload::Handle<EnvFilter, S> {
    fn get(&self) -> Result<String, reload::Error> {
        self.with_current(ToString::to_string)
    }

    fn set(&self, filter: EnvFilter) -> Result<(), reload::Error> {
        self.reload(filter)
    }
}

/// The only log.
static LEVEL: OnceLock<Box<dyn Level>> = OnceLock::new();

/// Log to standard error, from `level` on unless RUST_LOG says otherwise.
pub fn log_to_stderr(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        // Internal errors would go to standard error as well, and panic if that is closed.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let level: Box<dyn Level> = match format {
        LogFormat::Text => {
            let log = log.with_env_filter(filter).with_filter_reloading();
            let level = Box::new(log.reload_handle());
            log.init();
            level
        }
        LogFormat::Json => {
            let log = log.json().with_env_filter(filter).with_filter_reloading();
            let level = Box::new(log.reload_handle());
            log.init();
            level
        }
    };
    let _ = LEVEL.set(level);
}

/// Return the log filter in RUST_LOG's syntax; `None` without a log.
pub fn level() -> Option<String> {
    LEVEL.get()?.get().ok()
}

/// Set the log filter until the process ends.
///
/// # Errors
/// The problem of the text, or the lack of a log.
pub fn set_level(text: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    let log = LEVEL.get().ok_or("there is no log")?;
    log.set(filter).map_err(|error| error.to_string())
}
