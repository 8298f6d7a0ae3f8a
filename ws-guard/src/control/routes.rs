//! What the API answers.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, State as Shared},
    http::{StatusCode, header},
    response::Response,
    routing::{get, patch, post},
};
use futures_util::stream;
use serde::Serialize;

use super::{
    Allow, AllowView, Decision, EventQuery, ForNetwork, ForPort, Info, Release, SourceQuery,
    Throttle, companion,
    error::ApiError,
    operator::refused,
    reports::{Reported, Reports},
};
use ws_guard_server::service::Service;

use crate::{
    daemon::{events::Follower, state::State},
    domain::{
        event::EventView, flow::FlowView, overrides::Overrides, policy::PolicySettings,
        source::SourceView, status::Status,
    },
};

/// No request of ours is larger.
pub(super) const LARGEST_BODY: usize = 64 * 1024;
/// But for a batch of reports.
pub(super) const LARGEST_BATCH: usize = 256 * 1024;
/// The paths of the guard, below `/v1/`.
pub const PATHS: [&str; 12] = [
    "info",
    "status",
    "flows",
    "sources",
    "policy",
    "policy/cidr",
    "policy/port",
    "throttle",
    "release",
    "reports",
    "allow",
    "events",
];

/// JSON bodies whose rejections are JSON too.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(ApiError))]
pub(super) struct Input<T>(pub(super) T);

/// Queries whose rejections are JSON too.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub(super) T);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

/// The whole API of a daemon; `server` is the part of the companion server, see [`super::companion`].
pub fn router(state: State, server: Router) -> Router {
    let guard = Router::new()
        .route("/v1/info", get(info))
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/sources", get(sources))
        .route("/v1/policy", get(policy).patch(patch_policy))
        .route("/v1/policy/cidr", patch(patch_cidr).delete(unset_cidr))
        .route("/v1/policy/port", patch(patch_port).delete(unset_port))
        .route("/v1/throttle", post(throttle))
        .route("/v1/release", post(release))
        .route("/v1/reports", post(reports).layer(DefaultBodyLimit::max(LARGEST_BATCH)))
        .route("/v1/allow", get(allowlist).post(allow).delete(disallow))
        .route("/v1/events", get(events))
        .with_state(state);
    finish(guard.merge(server), || {
        format!("the paths are /v1/{}", [&PATHS[..], &companion::PATHS].concat().join(", "))
    })
}

/// The API of a companion server that runs alone.
pub fn alone(server: Arc<Service>) -> Router {
    finish(companion::router(Some(server)), || {
        let paths = companion::PATHS.join(", ");
        format!(
            "a companion server alone (`ws-guard serve`) answers here, with /v1/{paths}; name the guard's socket with --control-socket"
        )
    })
}

/// The companion server's part, for a daemon that checks nothing of it.
pub fn of_server(server: Arc<Service>) -> Router {
    companion::router(Some(server))
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
}

fn finish(router: Router, paths: impl Fn() -> String) -> Router {
    let paths = paths();
    router
        .fallback(async move |uri: axum::http::Uri| not_found(&uri, &paths))
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
}

/// Map access is system calls: off the threads that serve connections.
async fn blocking<T, F>(state: State, work: F) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&State) -> Result<T, ApiError> + Send + 'static,
{
    let broken = |error: tokio::task::JoinError| {
        let what = format!("the request was interrupted: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what, "see the daemon's log")
    };
    tokio::task::spawn_blocking(move || work(&state)).await.map_err(broken)?.map(Json)
}

async fn info(Shared(state): Shared<State>) -> Json<Info> {
    Json(state.info())
}

async fn status(Shared(state): Shared<State>) -> Answer<Status> {
    blocking(state, |state| Ok(state.status()?)).await
}

async fn flows(Shared(state): Shared<State>) -> Answer<Vec<FlowView>> {
    blocking(state, |state| Ok(state.reader.flows()?)).await
}

async fn sources(
    Shared(state): Shared<State>,
    Query(query): Query<SourceQuery>,
) -> Answer<Vec<SourceView>> {
    blocking(state, move |state| Ok(state.reader.sources(query.state)?)).await
}

async fn policy(Shared(state): Shared<State>) -> Answer<PolicySettings> {
    blocking(state, |state| Ok(state.reader.policy()?)).await
}

/// Change the policy, and tell what changed.
async fn change_policy<F>(state: State, change: F) -> Answer<PolicySettings>
where
    F: FnOnce(&State) -> Result<PolicySettings, ApiError> + Send + 'static,
{
    blocking(state, |state| {
        let before = state.reader.policy()?;
        let after = change(state)?;
        let changes = before.differences(&after);
        if !changes.is_empty() {
            state.events.record(EventView::message("policy", changes.join(", ")));
        }
        Ok(after)
    })
    .await
}

async fn patch_policy(
    Shared(state): Shared<State>,
    Input(fields): Input<serde_json::Map<String, serde_json::Value>>,
) -> Answer<PolicySettings> {
    change_policy(state, move |state| state.operator.patch(&fields)).await
}

async fn patch_cidr(
    Shared(state): Shared<State>,
    Input(wanted): Input<ForNetwork>,
) -> Answer<PolicySettings> {
    let own = own_settings(&wanted.settings, true)?;
    change_policy(state, move |state| state.operator.set_cidr(&wanted.cidr, &own)).await
}

async fn unset_cidr(
    Shared(state): Shared<State>,
    Input(wanted): Input<ForNetwork>,
) -> Answer<PolicySettings> {
    change_policy(state, move |state| {
        let configured = state.config().settings.policy.cidrs.clone();
        state.operator.unset_cidr(&wanted.cidr, &configured)
    })
    .await
}

async fn patch_port(
    Shared(state): Shared<State>,
    Input(wanted): Input<ForPort>,
) -> Answer<PolicySettings> {
    let own = own_settings(&wanted.settings, false)?;
    change_policy(state, move |state| state.operator.set_port(wanted.port, &own)).await
}

async fn unset_port(
    Shared(state): Shared<State>,
    Input(wanted): Input<ForPort>,
) -> Answer<PolicySettings> {
    change_policy(state, move |state| state.operator.unset_port(wanted.port)).await
}

fn own_settings(
    fields: &serde_json::Map<String, serde_json::Value>,
    network: bool,
) -> Result<Overrides, ApiError> {
    let own = Overrides::from_fields(fields.iter(), network).map_err(|errors| refused(&errors))?;
    if own.is_empty() {
        return Err(ApiError::bad("nothing to set", "name a setting, such as max_ping_rate"));
    }
    Ok(own)
}

async fn throttle(
    Shared(state): Shared<State>,
    Input(wanted): Input<Throttle>,
) -> Answer<Decision> {
    blocking(state, move |state| state.operator.throttle(&wanted)).await
}

async fn release(Shared(state): Shared<State>, Input(wanted): Input<Release>) -> Answer<Decision> {
    blocking(state, move |state| state.operator.release(&wanted.source)).await
}

async fn reports(Shared(state): Shared<State>, Input(batch): Input<Reports>) -> Answer<Reported> {
    blocking(state, move |state| state.operator.report(&batch)).await
}

async fn allowlist(Shared(state): Shared<State>) -> Answer<Vec<AllowView>> {
    blocking(state, |state| Ok(state.reader.allow()?)).await
}

async fn allow(
    Shared(state): Shared<State>,
    Input(wanted): Input<Allow>,
) -> Answer<Vec<AllowView>> {
    blocking(state, move |state| {
        let network = state.operator.allow(&wanted.network)?;
        state.events.record(EventView::message("policy", format!("{network} is allowed")));
        Ok(state.reader.allow()?)
    })
    .await
}

async fn disallow(
    Shared(state): Shared<State>,
    Input(wanted): Input<Allow>,
) -> Answer<Vec<AllowView>> {
    blocking(state, move |state| {
        let network = state.operator.disallow(&wanted.network)?;
        state
            .events
            .record(EventView::message("policy", format!("{network} is no longer allowed")));
        Ok(state.reader.allow()?)
    })
    .await
}

/// A line of JSON an event; never ends for a follower.
async fn events(Shared(state): Shared<State>, Query(query): Query<EventQuery>) -> Response {
    let (old, follower) = state.events.follow(query.since);
    let old = old.into_iter().map(|event| Ok::<_, Infallible>(line(&event)));
    let follower = query.follow.then_some(follower);
    let to_come = stream::unfold(follower, |follower: Option<Follower>| async {
        let mut follower = follower?;
        let event = follower.next().await?;
        Some((Ok(line(&event)), Some(follower)))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(stream::iter(old), to_come));
    let mut response = Response::new(body);
    let kind = header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn line(event: &Arc<EventView>) -> Bytes {
    // A view has nothing in it that JSON cannot hold.
    let mut line = serde_json::to_vec(event.as_ref()).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn not_found(uri: &axum::http::Uri, remedy: &str) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("unknown path {path}"), remedy)
}

async fn wrong_method(method: axum::http::Method) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not supported by this path"),
        "read with GET, change with PATCH /v1/policy, POST and DELETE",
    )
}
