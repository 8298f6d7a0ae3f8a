//! The guard on the real kernel, between real clients and third-party servers.
//!
//! Each test starts `ws-guard run` in a separate server namespace, with its own pin directory and
//! control socket, and asks the command line what the guard saw; [`stage::Stage::finish`] asserts
//! that nothing is left behind. Expected values are the clients' and the servers' own counts, never
//! the guard's code.
//!
//! `WS_GUARD_OBJECT=FILE` runs all of it against another build of the kernel programs.
/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod apart;
mod checksums;
#[allow(dead_code, reason = "no test here looks at all of it")]
#[path = "../server/collector.rs"]
mod collector;
mod companion;
mod counting;
mod crowd;
mod defuse;
mod drop;
mod events;
mod fragments;
mod held_window;
mod inspected;
mod jumbo;
mod limit;
mod lossy;
mod mptcp;
mod neighbours;
mod observe;
mod other_stacks;
mod pace;
mod page;
mod pauses;
mod process;
mod retransmission;
mod served;
mod stage;
mod talk;
mod tls;
mod top;
mod tunnels;
mod wss;
