//! `/metrics`, `/healthz`, `/readyz`, and `/health`, which is the same as `/healthz`.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;

use super::collector::GuardCollector;
use ws_guard_server::service::Service;

use crate::{
    daemon::state::State,
    listener::http::{self, Limits},
};

/// A registry with the daemon's collector in it.
pub fn registry(state: State) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(GuardCollector::new(state)?))?;
    Ok(registry)
}

/// The endpoints of the guard, for any listener. It is ready when the companion server is as well,
/// where there is one.
pub fn router(registry: Registry, state: State, server: impl Ready) -> Router {
    endpoints(registry, move || {
        state.ready()?;
        server()
    })
}

/// Those of the companion server alone.
pub fn router_alone(registry: Registry, server: Arc<Service>) -> Router {
    endpoints(registry, move || server.ready().map_err(|why| why.to_string()))
}

/// Says why something is not ready. May block.
pub trait Ready: Fn() -> Result<(), String> + Clone + Send + Sync + 'static {}

impl<F: Fn() -> Result<(), String> + Clone + Send + Sync + 'static> Ready for F {}

fn endpoints(registry: Registry, ready: impl Ready) -> Router {
    Router::new()
        .route("/metrics", get(move || text(registry.clone())))
        .route("/healthz", get(async || "ok\n"))
        .route("/health", get(async || "ok\n"))
        .route("/readyz", get(move || answer(ready.clone())))
}

/// Serve until dropped.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    state: State,
    server: impl Ready,
) -> anyhow::Result<()> {
    http::serve(listener, router(registry, state, server), Limits::METRICS).await;
    anyhow::bail!("the metrics port ended unexpectedly")
}

/// All that is in a registry, in Prometheus' text format.
async fn text(registry: Registry) -> Response {
    let scraped = tokio::task::spawn_blocking(move || {
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        encoder.encode(&registry.gather(), &mut text)?;
        Ok::<_, prometheus::Error>((encoder.format_type().to_string(), text))
    });
    match scraped.await {
        Ok(Ok((kind, text))) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn answer(ready: impl Ready) -> Response {
    let ready = tokio::task::spawn_blocking(ready).await;
    match ready.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}
