//! Log lines of the kernel programs (aya-log), for debugging.
//!
//! The level is a constant of the loaded object: with zero, the verifier removes every log call,
//! and logging costs nothing.
use aya::Ebpf;
use aya_log::{EbpfLogger, Level};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
};

use super::error::GuardError;

/// Buffer of the log lines.
pub const MAP: &str = "AYA_LOGS";
/// Size of the unused buffer in bytes: aya makes a page of it.
pub const UNUSED: u32 = 4096;

/// Return the value of [`aya_log::LEVEL`] to load with.
pub fn level(enabled: bool) -> u8 {
    if enabled { Level::Trace as u8 } else { 0 }
}

/// Pass log lines of the programs to the `log` crate, and so to tracing.
///
/// # Errors
/// When the object has no log buffer, or outside a tokio runtime.
pub fn start(ebpf: &mut Ebpf) -> Result<(), GuardError> {
    let failed = |error: &dyn std::fmt::Display| GuardError::Load {
        what: "the debug log of the kernel programs".into(),
        reason: error.to_string(),
    };
    let runtime = Handle::try_current().map_err(|error| failed(&error))?;
    let logger = EbpfLogger::init(ebpf).map_err(|error| failed(&error))?;
    let _entered = runtime.enter();
    // SAFETY: the value owns its descriptor and gives the same one for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = registered.map_err(|error| failed(&error))?;
    runtime.spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
