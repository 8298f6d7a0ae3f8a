//! OpenTelemetry over OTLP (HTTP and protobuf), when an endpoint is configured: spans of the companion
//! server's connections, and everything that `/metrics` has. Without an endpoint nothing of it runs.
//!
//! The standard variables hold: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_BSP_*`, and those of [`tls`].

mod http;
mod metrics;
pub mod spans;
mod tls;

use std::{fmt, io, str::FromStr, sync::Arc, thread::JoinHandle, time::Duration};

use hyper::{Uri, http::uri::Scheme};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use prometheus::Registry;
use tokio::sync::oneshot;

use self::{http::Http, metrics::Push, spans::Spans, tls::TrustError};

/// How long a request to the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The standard variable for an endpoint (OpenTelemetry Protocol Exporter specification).
pub const ENDPOINT_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where a collector listens, as `http://collector:4318`, or with `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl Endpoint {
    fn is_secure(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
    }

    /// The address for a signal (`traces` or `metrics`).
    fn of(&self, signal: &str) -> String {
        let base = self.0.to_string();
        format!("{}/v1/{signal}", base.trim_end_matches('/'))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let wrong = || format!("{text:?} is no endpoint: write it as http://collector:4318");
        let uri: Uri = text.trim().parse().map_err(|_| wrong())?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(_)) => Ok(Endpoint(uri)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot start the thread that exports telemetry: {0}")]
    Thread(#[from] io::Error),
    #[error("cannot export spans: {0}")]
    Spans(#[from] ExporterBuildError),
    #[error("cannot export over TLS: {0}")]
    Tls(#[from] TrustError),
    #[error("cannot register the metrics of the export: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What exports, on threads of its own.
pub struct Telemetry {
    spans: Arc<Spans>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Telemetry {
    /// Export to `endpoint` until [`Telemetry::stop`]: the metrics in `registry`, and the spans that
    /// [`Telemetry::spans`] is given.
    pub fn start(endpoint: &Endpoint, registry: &Registry) -> Result<Telemetry, TelemetryError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tls = endpoint.is_secure().then(tls::connector).transpose()?;
        let http = Http::new(runtime.handle().clone(), tls, registry)?;
        let resource = resource();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(http.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.of("traces"))
            .with_timeout(TIMEOUT)
            .build()?;
        let spans = Arc::new(Spans::new(exporter, &resource));
        let (stop, stopped) = oneshot::channel();
        let push = Push::new(http, endpoint.of("metrics"), registry.clone(), &resource);
        let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || {
            runtime.block_on(push.run(stopped));
        })?;
        Ok(Telemetry { spans, stop, thread })
    }

    /// For spans.
    pub fn spans(&self) -> Arc<Spans> {
        self.spans.clone()
    }

    /// Export what waits, and end. Blocks for as long as two requests may take.
    pub fn stop(self) {
        self.spans.stop();
        // A thread that has ended needs no telling.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread that exports telemetry panicked");
        }
    }
}

/// Who sends it.
fn resource() -> Resource {
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|a| a.contains("service.name="));
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
        for (text, why) in [
            ("ftp://collector:4318", "no endpoint"),
            ("collector:4318", "no endpoint"),
            ("http://", "no endpoint"),
            ("", "no endpoint"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
