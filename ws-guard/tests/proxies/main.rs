//! The guard behind Debian's nginx and HAProxy, in front of real servers.
//!
//! Hundreds of clients with an address each connect through a proxy, which the guard sees as one
//! peer. Expected values are the clients' own counts: [`row`] has the rules for each front, server,
//! IP version, kind of address, place of the guard and action; [`headers`] has the rows.
//! [`attacks`] has headers that lie. [`crowd`] has no header that identifies clients, [`sources`]
//! more clients than the table has room for, [`timeouts`] a proxy that gives up, and [`comparison`]
//! asks nginx and HAProxy for the client.
//!
//! The nightly tests run every combination; `WS_GUARD_PART=0/3` runs the first of three parts.
//!
//! `cargo xtask setup` installs the proxies. `WS_GUARD_OBJECT=FILE` runs all of it against another
//! build of the kernel programs.
/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod attacks;
mod comparison;
mod crowd;
mod headers;
#[path = "../guard/process.rs"]
mod process;
mod row;
mod sources;
mod stage;
mod timeouts;
