//! `/metrics`, `/healthz`, `/readyz`, and `/health`, which is the same as `/healthz`.

use axum::{
    Router,
    extract::State as Shared,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;

use super::collector::GuardCollector;
use crate::daemon::state::State;

/// A registry with the daemon's collector in it.
pub fn registry(state: State) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(GuardCollector::new(state)?))?;
    Ok(registry)
}

/// The endpoints, for any listener.
pub fn router(registry: Registry, state: State) -> Router {
    Router::new()
        .route("/metrics", get(move || text(registry.clone())))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/health", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(state)
}

/// Serve until dropped.
pub async fn serve(listener: TcpListener, registry: Registry, state: State) -> anyhow::Result<()> {
    Ok(axum::serve(listener, router(registry, state)).await?)
}

/// All that is in a registry, in Prometheus' text format.
pub async fn text(registry: Registry) -> Response {
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

async fn ready(Shared(state): Shared<State>) -> Response {
    match state.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}
