//! What is in `deploy/`: manifests, rules and the dashboard, against their schemas, against the image
//! and against a guard that runs.
//!
//! - [`manifests`], [`rules`], [`names`], [`dashboard`]: what can be told from the files;
//! - [`image`]: the containers of the rendered manifests, run from the image with runc;
//! - [`alarms`]: every expression of panels and alerts asked of a Prometheus that scrapes a guard
//!   under attack, and in trouble.
//!
//! The image is what `cargo xtask image --profile dev` made last; `WS_GUARD_IMAGE` names another.
/// Skip, loudly, without root.
macro_rules! needs_root {
    () => {
        if let Some(reason) = ws_guard_testkit::skip_reason() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}

mod alarms;
mod container;
mod dashboard;
mod files;
mod http;
mod image;
mod manifests;
mod names;
mod node;
mod prometheus;
mod rules;
mod stage;
