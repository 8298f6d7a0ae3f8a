//! Contents of `deploy/`: manifests, rules and dashboards, against their schemas,
//! against the image and against a running guard.
//!
//! - [`manifests`], [`rules`], [`names`], [`dashboard`], [`links`]: checks of the files alone;
//! - [`chart`]: the Helm chart, and that it renders the same objects as kustomize;
//! - [`catalogue`]: `docs/metrics.md`, and the exports of a guard with a server;
//! - [`image`]: the containers of the rendered manifests, run from the image with runc;
//! - [`alarms`]: every expression of panels and alerts, evaluated by a Prometheus that scrapes a
//!   guard under attack, and in trouble; [`pictures`] of the dashboards then;
//! - [`bus`]: the alerts on topics and their bus, with a real Redis in trouble.
//! - [`systemd`]: the units of hosts without Kubernetes;
//! - [`observability`]: Prometheus, Alertmanager and an OpenTelemetry collector as in the examples,
//!   the mail that arrives, and the collector's exports.
//!
//! The image is the last one made by `cargo xtask image --profile dev`; `WS_GUARD_IMAGE` names
//! another.
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
