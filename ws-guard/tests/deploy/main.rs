//! What is in `deploy/`: manifests, rules and dashboards, against their schemas, against the image
//! and against a guard that runs.
//!
//! - [`manifests`], [`rules`], [`names`], [`dashboard`], [`links`]: what can be told from the files;
//! - [`chart`]: the Helm chart, and that it renders the same objects as kustomize;
//! - [`catalogue`]: what `docs/metrics.md` says, and what a guard with a server exports;
//! - [`image`]: the containers of the rendered manifests, run from the image with runc;
//! - [`alarms`]: every expression of panels and alerts asked of a Prometheus that scrapes a guard
//!   under attack, and in trouble; [`pictures`] of the dashboards then;
//! - [`bus`]: the alerts on topics and their bus, with a real Redis in trouble.
//! - [`systemd`]: the units of hosts without Kubernetes;
//! - [`observability`]: Prometheus, Alertmanager and a collector of OpenTelemetry as in the examples,
//!   the mail that comes, and what the collector hands on.
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
mod bus;
mod catalogue;
mod chart;
#[allow(dead_code, reason = "no test here looks at all of it")]
#[path = "../server/collector.rs"]
mod collector;
mod container;
mod dashboard;
mod files;
mod http;
mod image;
mod links;
mod manifests;
mod names;
mod node;
mod observability;
mod pictures;
mod prometheus;
mod rules;
mod stage;
mod systemd;
