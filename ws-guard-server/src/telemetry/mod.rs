//! OpenTelemetry over OTLP (HTTP and protobuf), when an endpoint is configured.
//!
//! It exports spans of the companion server's connections, all metrics of `/metrics`, and
//! optionally events as logs. Without an endpoint nothing of it runs. The standard variables apply,
//! those of [`environment`] and [`tls`]; others are warned about.

mod environment;
pub(crate) mod http;
pub mod logs;
mod metrics;
mod spans;
mod tls;

use std::{fmt, io, str::FromStr, sync::Arc, thread::JoinHandle};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    Compression, ExporterBuildError, LogExporter, Protocol, SpanExporter, WithExportConfig,
    WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use prometheus::Registry;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use url::Url;

use self::{
    environment::{Environment, Signal},
    http::Http,
    logs::Logs,
    metrics::Push,
    spans::Spans,
    tls::TrustError,
};
use crate::trace::Trace;

/// Standard endpoint variable (OpenTelemetry Protocol Exporter specification).
pub const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Address of a collector, as `http://collector:4318`, or with `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    fn is_secure(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Return the address for a signal: `traces`, `metrics` or `logs`.
    fn of(&self, signal: &str) -> String {
        let mut address = self.0.clone();
        // Every address with a host has a path.
        if let Ok(mut path) = address.path_segments_mut() {
            path.pop_if_empty().extend(["v1", signal]);
        }
        address.into()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let wrong = || format!("{text:?} is no endpoint: write it as http://collector:4318");
        let url = Url::parse(text.trim()).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || url.fragment().is_some() {
            return Err(wrong());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("an endpoint with a user would show in logs: send an authorization with OTEL_EXPORTER_OTLP_HEADERS".into());
        }
        Ok(Endpoint(url))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reason why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot start the thread that exports telemetry: {0}")]
    Thread(#[from] io::Error),
    #[error("cannot export spans or logs: {0}")]
    Exporter(#[from] ExporterBuildError),
    #[error("{0}")]
    Variable(String),
    #[error("cannot export over TLS: {0}")]
    Tls(#[from] TrustError),
    #[error("cannot register the metrics of the export: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Signals that a process exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    pub traces: bool,
    pub metrics: bool,
    pub logs: bool,
}

impl Signals {
    /// Signals of a server alone, which has no log of events.
    pub const SERVER: Signals = Signals { traces: true, metrics: true, logs: false };
    /// Signals of a server under a guard, which exports the rest.
    pub const TRACES: Signals = Signals { traces: true, metrics: false, logs: false };
}

/// Signals and destinations of exports, with all files already read.
/// From here on no privilege is needed.
pub struct Export {
    traces: Option<Signal>,
    metrics: Option<Signal>,
    logs: Option<Signal>,
    tls: Option<TlsConnector>,
    resource: Resource,
}

impl Export {
    /// Read the settings, for `endpoint` or that of a variable; `None` without either.
    pub fn read(
        endpoint: Option<&Endpoint>,
        signals: Signals,
    ) -> Result<Option<Export>, TelemetryError> {
        let environment = Environment::of_process();
        let signal = |name| environment.signal(name, endpoint).map_err(TelemetryError::Variable);
        let traces = signal("TRACES")?.filter(|_| signals.traces);
        let metrics = signal("METRICS")?.filter(|_| signals.metrics);
        let logs = signal("LOGS")?.filter(|_| signals.logs);
        if traces.is_none() && metrics.is_none() && logs.is_none() {
            return Ok(None);
        }
        if environment.is_disabled() {
            tracing::info!("no telemetry is exported: OTEL_SDK_DISABLED is set");
            return Ok(None);
        }
        // One process warns for both.
        for variable in environment.in_vain().iter().filter(|_| signals.metrics) {
            tracing::warn!("{variable}");
        }
        let secure = [&traces, &metrics, &logs].into_iter().flatten().any(|signal| signal.secure);
        let tls = secure.then(tls::connector).transpose()?;
        Ok(Some(Export { traces, metrics, logs, tls, resource: resource(&environment) }))
    }

    /// Check whether logs are exported.
    pub const fn has_logs(&self) -> bool {
        self.logs.is_some()
    }

    /// Export the metrics in `registry` and the spans of [`Telemetry::trace`].
    /// It ends with [`Telemetry::stop`].
    pub fn start(self, registry: &Registry) -> Result<Telemetry, TelemetryError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let http = Http::new(runtime.handle().clone(), self.tls, registry)?;
        let resource = self.resource;
        let spans = self.traces.map(|signal| spans(&http, &signal, &resource)).transpose()?;
        let logs = self.logs.map(|signal| logs(&http, &signal, resource.clone())).transpose()?;
        let (stop, stopped) = oneshot::channel();
        let push = self.metrics.map(|signal| Push::new(&http, signal, registry.clone(), &resource));
        let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || {
            runtime.block_on(async {
                match push {
                    Some(push) => push.run(stopped).await,
                    // Requests of the spans run here.
                    None => drop(stopped.await),
                }
            });
        })?;
        Ok(Telemetry { spans, logs, stop, thread })
    }
}

/// Exporters, on their own threads.
pub struct Telemetry {
    spans: Option<Arc<Spans>>,
    logs: Option<Arc<Logs>>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Telemetry {
    /// Export what a server alone has, as [`Export`] does.
    pub fn start(
        endpoint: Option<&Endpoint>,
        registry: &Registry,
    ) -> Result<Option<Telemetry>, TelemetryError> {
        let export = Export::read(endpoint, Signals::SERVER)?;
        export.map(|export| export.start(registry)).transpose()
    }

    /// Return the receiver of connections, where spans are exported.
    pub fn trace(&self) -> Option<Arc<dyn Trace>> {
        self.spans.clone().map(|spans| spans as Arc<dyn Trace>)
    }

    /// Return the receiver of events, where logs are exported.
    pub fn logs(&self) -> Option<Arc<Logs>> {
        self.logs.clone()
    }

    /// Export waiting data, and end. Blocks for at most the time-outs of two requests.
    pub fn stop(self) {
        if let Some(spans) = &self.spans {
            spans.stop();
        }
        if let Some(logs) = &self.logs {
            logs.stop();
        }
        // A thread that has ended needs no signal.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread that exports telemetry panicked");
        }
    }
}

fn spans(
    http: &Http,
    signal: &Signal,
    resource: &Resource,
) -> Result<Arc<Spans>, ExporterBuildError> {
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(http.carrying("traces", signal.timeout))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&signal.address)
        .with_timeout(signal.timeout);
    if signal.gzip {
        exporter = exporter.with_compression(Compression::Gzip);
    }
    Ok(Arc::new(Spans::new(exporter.build()?, resource)))
}

fn logs(http: &Http, signal: &Signal, resource: Resource) -> Result<Arc<Logs>, ExporterBuildError> {
    let mut exporter = LogExporter::builder()
        .with_http()
        .with_http_client(http.carrying("logs", signal.timeout))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&signal.address)
        .with_timeout(signal.timeout);
    if signal.gzip {
        exporter = exporter.with_compression(Compression::Gzip);
    }
    Ok(Arc::new(Logs::new(exporter.build()?, resource)))
}

/// Describe the sender.
fn resource(environment: &Environment) -> Resource {
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let named =
        environment.get("OTEL_SERVICE_NAME").is_some() || attributes.contains("service.name=");
    if named { builder.build() } else { builder.with_service_name("ws-guard").build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let endpoint: Endpoint = "http://[::1]:4318/".parse().unwrap();
        assert_eq!(endpoint.of("traces"), "http://[::1]:4318/v1/traces");
        let endpoint: Endpoint = "http://collector:4318/base".parse().unwrap();
        assert_eq!(endpoint.of("metrics"), "http://collector:4318/base/v1/metrics");
        let endpoint: Endpoint = "https://collector/".parse().unwrap();
        assert!(endpoint.is_secure());
        let endpoint: Endpoint = "http://h/otlp?key=1".parse().unwrap();
        assert_eq!(endpoint.of("traces"), "http://h/otlp/v1/traces?key=1");
        for (text, why) in [
            ("ftp://collector:4318", "no endpoint"),
            ("collector:4318", "no endpoint"),
            ("http://", "no endpoint"),
            ("", "no endpoint"),
            ("http://h/#top", "no endpoint"),
            ("http://user:secret@h/", "with a user"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
