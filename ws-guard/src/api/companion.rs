//! Companion server's part of the API; without a server, it explains its 404.

use std::{
    cmp::Reverse,
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State as Shared,
    http::{HeaderValue, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;

use super::{
    extract::{Answer, Input, Path, Query},
    message::{ConnectionQuery, Publish, Published, StoryQuery},
};
use crate::operator::error::ApiError;
use ws_guard_server::{
    journal::Follower,
    service::Service,
    topics::{bus::BusError, protocol::Topic},
    view::{ConnectionStory, ConnectionView, StoryEvent},
};

/// Age up to which ended connections are listed; `all` lists older ones too.
const RECENT: Duration = Duration::from_secs(60);

/// Paths of this part, below `/v1/`.
pub const PATHS: [&str; 4] =
    ["connections", "connections/{id}", "connections/{id}/story", "publish"];

type Companion = Option<Arc<Service>>;

/// Return the routes of the companion server.
pub fn router(companion: Companion) -> Router {
    Router::new()
        .route("/v1/connections", get(connections))
        .route("/v1/connections/{id}", get(connection))
        .route("/v1/connections/{id}/story", get(story))
        .route("/v1/publish", post(publish))
        .with_state(companion)
}

/// Return the same routes for a daemon without a companion server.
pub fn absent() -> Router {
    router(None)
}

/// Check for a slow heartbeat or reader, or an abnormal end.
fn needs_a_look(view: &ConnectionView) -> bool {
    let ended_badly = view.code.is_some_and(|code| !matches!(code, 1000 | 1001 | 1012));
    matches!(view.state.as_ref(), "suspect" | "dead") || view.message_queue_size > 0 || ended_badly
}

fn running(companion: &Companion) -> Result<&Arc<Service>, ApiError> {
    companion.as_ref().ok_or_else(|| {
        let remedy = "start it with `ws-guard run --listen ADDR` or `ws-guard serve`";
        ApiError::new(StatusCode::NOT_FOUND, "no companion server runs here", remedy)
    })
}

fn unknown(id: u64) -> ApiError {
    let error = format!("there is no connection {id}, and no record of one");
    ApiError::new(StatusCode::NOT_FOUND, error, "see `ws-guard connections --all`")
}

async fn connections(
    Shared(companion): Shared<Companion>,
    Query(query): Query<ConnectionQuery>,
) -> Answer<Vec<ConnectionView>> {
    let service = running(&companion)?;
    let mut views = service.live(None).await;
    let recent = SystemTime::now().checked_sub(RECENT);
    let since = recent.filter(|_| !query.all).unwrap_or(SystemTime::UNIX_EPOCH);
    views.extend(service.journal.closed(since));
    if let Some(first) = query.first {
        views.sort_by_key(|view| (Reverse(needs_a_look(view)), Reverse(view.id)));
        views.truncate(first);
    }
    Ok(Json(views))
}

async fn connection(
    Shared(companion): Shared<Companion>,
    Path(id): Path<u64>,
) -> Answer<ConnectionStory> {
    let service = running(&companion)?;
    let connection = find(service, id).await?;
    Ok(Json(ConnectionStory { connection, story: service.journal.story(id) }))
}

async fn find(service: &Service, id: u64) -> Result<ConnectionView, ApiError> {
    let live = service.live(Some(id)).await.pop();
    live.or_else(|| service.journal.closed_one(id)).ok_or_else(|| unknown(id))
}

/// Send each event as a line of JSON; with `follow`, until the connection ends.
async fn story(
    Shared(companion): Shared<Companion>,
    Path(id): Path<u64>,
    Query(query): Query<StoryQuery>,
) -> Result<Response, ApiError> {
    let service = running(&companion)?;
    let (old, follower) = service.journal.follow(id);
    find(service, id).await?;
    let over = old.iter().any(is_last);
    let follower = (query.follow && !over).then_some(follower);
    let to_come = stream::unfold(follower, |follower| async {
        let mut follower: Follower = follower?;
        let event = follower.next().await?;
        let last = is_last(&event);
        Some((line(&event), (!last).then_some(follower)))
    });
    let lines = stream::iter(old.iter().map(line).collect::<Vec<_>>()).chain(to_come);
    let mut response = Response::new(Body::from_stream(lines));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Publish a message as an operator, or as the service behind the server.
async fn publish(
    Shared(companion): Shared<Companion>,
    Input(wanted): Input<Publish>,
) -> Answer<Published> {
    let service = running(&companion)?;
    let topics = service.topics.as_ref().ok_or_else(|| {
        let error = "the companion server runs the echo handler, without topics";
        ApiError::new(StatusCode::CONFLICT, error, "start it with --handler topic")
    })?;
    let topic = Topic::new(&wanted.topic);
    let topic = topic.map_err(|problem| ApiError::bad(problem.error, problem.remedy))?;
    let (promise, kept) = oneshot::channel();
    // The requester may have left.
    let keep = Box::new(|stored| drop(promise.send(stored)));
    topics.publish_data(&topic, &wanted.data, wanted.key.as_deref(), keep);
    let lost = |_| BusError::Unavailable("it ended".into());
    let stored = kept.await.map_err(lost).and_then(|stored| stored).map_err(|error| {
        let error = error.to_string();
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, "try again later")
            .retry_after(BusError::RETRY_AFTER)
    })?;
    let offset = stored.position.map(|position| position.offset);
    let (subscribers, repeated) = (stored.reached, stored.repeated);
    Ok(Json(Published { topic: wanted.topic, subscribers, offset, repeated }))
}

fn is_last(event: &StoryEvent) -> bool {
    event.event == "closed"
}

fn line(event: &StoryEvent) -> Result<Bytes, Infallible> {
    // Events hold nothing that JSON cannot represent.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    Ok(line.into())
}
