//! Metrics of an idle server, the source of the catalogue.

use prometheus::{Registry, proto::MetricFamily};

use crate::{
    access_log::AccessLog,
    metrics::{Metrics, Regions},
    negotiation::NONE,
    seen::Seen,
    telemetry::http,
    topics::{metrics::TopicMetrics, redis::BusMetrics},
};

/// Families that exist under one condition.
pub struct Group {
    pub title: &'static str,
    /// Condition of their existence.
    pub when: &'static str,
    pub families: Vec<MetricFamily>,
}

fn group(
    title: &'static str,
    when: &'static str,
    register: impl FnOnce(&Registry) -> prometheus::Result<()>,
) -> prometheus::Result<Group> {
    let registry = Registry::new();
    register(&registry)?;
    Ok(Group { title, when, families: registry.gather() })
}

/// Return each family of the server's process, with its series.
///
/// # Errors
/// If two have the same name.
pub fn groups() -> prometheus::Result<[Group; 5]> {
    Ok([
        group(
            "Companion server",
            "`serve`, `run --listen`; those by `protocol` from its first connection on",
            |registry| {
                let metrics = Metrics::new(registry)?;
                Regions::new(&metrics);
                metrics.by_protocol.prepare(NONE);
                AccessLog::none().register(registry)
            },
        )?,
        group("Topics", "`--handler topic`", |registry| TopicMetrics::new(registry).map(drop))?,
        group("Bus between servers", "`--bus`", |registry| BusMetrics::new(registry).map(drop))?,
        group("Pings inside TLS", "`run --listen`", |registry| Seen::new(registry).map(drop))?,
        group("Export", "`--otlp-endpoint`", |registry| {
            let requests = http::requests(registry)?;
            for signal in ["logs", "metrics", "traces"] {
                http::prepare(&requests, signal);
            }
            Ok(())
        })?,
    ])
}
