//! Errors as messages and exit codes of sysexits(3).

use std::{
    io::{self, Write},
    process::ExitCode,
};

use ws_guard_inspect::ReadError;

use crate::{api::client::ClientError, config::ConfigError, guard::GuardError};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// sysexits(3)'s EX_USAGE, wrong use of the program, here for its configuration.
const CONFIG: u8 = 64;
/// EX_DATAERR: a capture is damaged, or the file is not one.
const DAMAGED: u8 = 65;
/// EX_NOINPUT.
const NO_INPUT: u8 = 66;
/// EX_UNAVAILABLE.
const UNAVAILABLE: u8 = 69;
/// EX_NOPERM.
const NO_PERMISSION: u8 = 77;
/// EX_CONFIG: the pins are incompatible.
const INCOMPATIBLE: u8 = 78;

/// Print clap's own errors, help and version among them.
pub fn usage(error: &clap::Error) -> ExitCode {
    // A closed terminal cannot be reported to.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
}

/// Return the exit code for an invalid variable.
pub fn configuration() -> ExitCode {
    ExitCode::from(CONFIG)
}

/// Print an error and return its exit code.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        return usage(error);
    }
    // Standard error may be closed, or full.
    let _ = writeln!(io::stderr(), "ws-guard: {error:#}");
    ExitCode::from(code(error))
}

/// Check whether the reader has closed the pipe: `ws-guard flows | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<ConfigError>().is_some() {
        return CONFIG;
    }
    match error.downcast_ref::<ReadError>() {
        Some(ReadError::Open { .. }) => return NO_INPUT,
        Some(ReadError::Damaged { .. }) => return DAMAGED,
        None => {}
    }
    if let Some(client) = error.downcast_ref::<ClientError>() {
        return match client {
            ClientError::Unreachable(_) => UNAVAILABLE,
            ClientError::Forbidden(_) => NO_PERMISSION,
            ClientError::Refused(_) | ClientError::Broken(..) => FAILED,
        };
    }
    match error.downcast_ref::<GuardError>() {
        Some(GuardError::Privileges(_)) => NO_PERMISSION,
        Some(GuardError::Incompatible(..)) => INCOMPATIBLE,
        Some(GuardError::NotLoaded(_) | GuardError::Earlier(..)) => UNAVAILABLE,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_as_documented() {
        let of = |error: anyhow::Error| code(&error.context("while starting"));
        assert_eq!(of(ConfigError(Vec::new()).into()), 64);
        assert_eq!(of(ClientError::Unreachable("/s".into()).into()), 69);
        assert_eq!(of(ClientError::Forbidden("/s".into()).into()), 77);
        assert_eq!(of(GuardError::Privileges("CAP_BPF".into()).into()), 77);
        assert_eq!(of(GuardError::Incompatible("/p".into(), "1".into()).into()), 78);
        assert_eq!(of(GuardError::NotLoaded("/p".into()).into()), 69);
        let error = io::ErrorKind::NotFound.into();
        assert_eq!(of(ReadError::Open { name: "a.pcap".into(), error }.into()), 66);
        let damage = ws_guard_inspect::input::Damage { offset: 24, what: "cut".into() };
        assert_eq!(of(ReadError::Damaged { name: "a.pcap".into(), damage }.into()), 65);
        assert_eq!(of(anyhow::anyhow!("else")), 1);
    }
}
