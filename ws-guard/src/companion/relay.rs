//! Server's part of the control API, relayed to its process.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State as Shared},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::any,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::supervisor::Shared as Server;
use crate::{api::companion::PATHS, operator::error::ApiError};

/// Time limit from a request to the head of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Return the routes, each relayed unchanged.
pub fn router(server: Arc<Server>) -> Router {
    let routes = PATHS
        .iter()
        .fold(Router::new(), |router, path| router.route(&format!("/v1/{path}"), any(relay)));
    routes.with_state(server)
}

async fn relay(Shared(server): Shared<Arc<Server>>, request: Request) -> Response {
    match timeout(PATIENCE, ask(&server, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => gone(&error.to_string()).into_response(),
        Err(_) => gone("it does not answer").into_response(),
    }
}

fn gone(why: &str) -> ApiError {
    let error = format!("the companion server cannot be asked: {why}");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again, and see the daemon's log")
}

async fn ask(server: &Server, request: Request) -> anyhow::Result<Response> {
    let stream = server.link()?.connect()?;
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = http1::handshake::<_, Body>(stream).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Body::new))
}
