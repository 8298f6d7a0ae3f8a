//! Where the guard attaches: uplinks and pods' interfaces of a node, by name and by pattern, as they
//! come and go, and next to other people's programs. Each test runs the real `ws-guard run` in a
//! node's namespace of its own, and leaves nothing behind.

/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod coexistence;
mod foreign;
mod guard;
mod hotplug;
mod inspection;
mod namespaces;
mod outage;
mod traffic;
