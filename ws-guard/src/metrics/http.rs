//! `/metrics`, `/healthz`, `/readyz`, and `/health`, an alias of `/healthz`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{net::TcpListener, sync::Mutex};

use super::{collector::GuardCollector, openmetrics};
use ws_guard_server::{metrics::Exemplar, service::Service};

use crate::{
    listener::http::{self, Limits},
    state::State,
};

/// Lifetime of an answer, as a multiple of the time it took,
/// so that any number of requests takes at most a twentieth of a CPU...
const AGAIN: u32 = 20;
/// ...and its maximum.
const OLDEST: Duration = Duration::from_secs(1);

/// Create a registry with the daemon's collector.
pub fn registry(state: State) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(GuardCollector::new(state)?))?;
    Ok(registry)
}

/// Return the guard's endpoints, for any listener.
/// The guard is ready if the companion server, where there is one, is ready too.
pub fn router(
    registry: Registry,
    exemplars: impl Exemplify,
    state: State,
    server: impl Ready,
) -> Router {
    endpoints(registry, exemplars, move || {
        state.ready()?;
        server()
    })
}

/// Return the endpoints of a companion server that runs alone.
pub fn router_alone(registry: Registry, server: Arc<Service>) -> Router {
    let asked = server.clone();
    let ready = move || server.ready().map_err(|why| why.to_string());
    endpoints(registry, move || asked.exemplars(), ready)
}

/// Check of readiness; the error says what is not ready. May block.
pub trait Ready: Fn() -> Result<(), String> + Clone + Send + Sync + 'static {}

impl<F: Fn() -> Result<(), String> + Clone + Send + Sync + 'static> Ready for F {}

/// Source of the connections that are exemplars of samples.
pub trait Exemplify: Fn() -> Vec<Exemplar> + Clone + Send + Sync + 'static {}

impl<F: Fn() -> Vec<Exemplar> + Clone + Send + Sync + 'static> Exemplify for F {}

fn endpoints(registry: Registry, exemplars: impl Exemplify, ready: impl Ready) -> Router {
    let scraped = Scraped::default();
    Router::new()
        .route(
            "/metrics",
            get(move |headers: HeaderMap| {
                text(registry.clone(), exemplars.clone(), scraped.clone(), wanted(&headers))
            }),
        )
        .route("/healthz", get(async || "ok\n"))
        .route("/health", get(async || "ok\n"))
        .route("/readyz", get(move || answer(ready.clone())))
}

/// Serve until dropped.
pub async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    http::serve(listener, router, Limits::METRICS).await;
    anyhow::bail!("the metrics port ended unexpectedly")
}

/// Format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Prometheus' text format.
    Text,
    OpenMetrics,
}

/// Return the format that a request accepts.
fn wanted(headers: &HeaderMap) -> Format {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    match accepts.into_iter().any(openmetrics::is_accepted) {
        true => Format::OpenMetrics,
        false => Format::Text,
    }
}

/// Latest answers of `/metrics`, by format.
/// One is made at a time; concurrent requests wait for it.
type Scraped = Arc<Mutex<[Option<Text>; 2]>>;

#[derive(Clone)]
struct Text {
    kind: String,
    text: Bytes,
    made: Instant,
    took: Duration,
}

impl Text {
    /// Write all of a registry's metrics. Blocks.
    fn of(
        registry: &Registry,
        exemplars: impl Exemplify,
        format: Format,
    ) -> prometheus::Result<Text> {
        let began = Instant::now();
        let families = registry.gather();
        let (kind, text) = match format {
            Format::Text => {
                let (encoder, mut text) = (TextEncoder::new(), Vec::new());
                encoder.encode(&families, &mut text)?;
                (encoder.format_type().to_string(), text)
            }
            Format::OpenMetrics => (
                openmetrics::KIND.to_owned(),
                openmetrics::encode(&families, &exemplars()).into_bytes(),
            ),
        };
        let made = Instant::now();
        Ok(Text { kind, text: text.into(), made, took: made.duration_since(began) })
    }

    fn is_good(&self) -> bool {
        self.made.elapsed() < (self.took * AGAIN).min(OLDEST)
    }
}

async fn text(
    registry: Registry,
    exemplars: impl Exemplify,
    scraped: Scraped,
    format: Format,
) -> Response {
    let mut scraped = scraped.lock().await;
    let latest = &mut scraped[format as usize];
    if let Some(known) = latest.clone().filter(Text::is_good) {
        return ([(header::CONTENT_TYPE, known.kind)], known.text).into_response();
    }
    let made = tokio::task::spawn_blocking(move || Text::of(&registry, exemplars, format)).await;
    let error = match made {
        Ok(Ok(made)) => {
            *latest = Some(made.clone());
            return ([(header::CONTENT_TYPE, made.kind)], made.text).into_response();
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

async fn answer(ready: impl Ready) -> Response {
    let ready = tokio::task::spawn_blocking(ready).await;
    match ready.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use prometheus::{
        core::{Collector, Desc},
        proto::MetricFamily,
    };

    use super::*;

    /// Collector that takes its time, and counts its collections.
    struct Slow(Arc<AtomicU64>, prometheus::IntCounter);

    impl Collector for Slow {
        fn desc(&self) -> Vec<&Desc> {
            self.1.desc()
        }

        fn collect(&self) -> Vec<MetricFamily> {
            std::thread::sleep(Duration::from_millis(100));
            self.0.fetch_add(1, Ordering::Relaxed);
            self.1.inc();
            self.1.collect()
        }
    }

    #[tokio::test]
    async fn many_scrapes_at_once_are_one() {
        let (count, registry) = (Arc::new(AtomicU64::new(0)), Registry::new());
        let counter = prometheus::IntCounter::new("slow", "slow").unwrap();
        registry.register(Box::new(Slow(count.clone(), counter))).unwrap();
        let scraped = Scraped::default();
        let asks = (0..50).map(|_| text(registry.clone(), Vec::new, scraped.clone(), Format::Text));
        for answer in futures_util::future::join_all(asks).await {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // An outdated answer is replaced.
        let old = scraped.lock().await[0].as_mut().map(|text| text.made -= OLDEST);
        assert!(old.is_some());
        text(registry, Vec::new, scraped, Format::Text).await;
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
