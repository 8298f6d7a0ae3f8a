//! Failures: dying daemons, spoofed floods, full tables, vanishing interfaces.
//! Each test runs the real `ws-guard run` between separate namespaces and in front of a server made
//! with a third-party library, and proves that nothing is left behind.

/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

/// Skip, loudly, where the kernel has no TCX.
macro_rules! needs_tcx {
    () => {
        if let Some(reason) = ws_guard_testkit::no_tcx_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod cpus;
mod events;
mod interface;
mod kept;
mod killed;
mod migration;
mod paced;
mod policy;
mod reports;
mod spoofed;
mod stage;
mod tables;
mod unload;
