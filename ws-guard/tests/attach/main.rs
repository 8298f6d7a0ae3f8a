//! Attachment to uplinks and pods' interfaces of a node.
//! They are named or matched by pattern, come and go, and have foreign programs next to ours. Each
//! test runs the real `ws-guard run` in a node's own namespace, and leaves nothing behind.

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
