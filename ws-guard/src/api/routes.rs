//! Routes and handlers of the API.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State as Shared},
    http::{StatusCode, header},
    response::Response,
    routing::{get, patch, post},
};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    companion,
    events::EventQuery,
    extract::{Answer, Input, LARGEST_BATCH, LARGEST_BODY, Query},
    message::{Allow, ForNetwork, ForPort, Info, LogLevel, Release, SourceQuery},
};
use ws_guard_server::service::Service;

use crate::{
    domain::{
        event::EventView, flow::FlowView, origin::AllowView, overrides::Overrides,
        policy::PolicySettings, status::Status,
    },
    guard::GuardError,
    log,
    operator::{
        error::ApiError,
        reports::{Reported, Reports},
        throttling::{Decision, Throttle},
    },
    state::{State, events::Follower, listing},
};

/// Paths of the guard, below `/v1/`.
pub const PATHS: [&str; 13] = [
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
    "log",
];

/// Return the whole API of a daemon; `server` is from [`super::companion`].
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
        .route("/v1/log", get(log_level).put(set_log_level))
        .with_state(state);
    finish(guard.merge(server), || {
        format!("the paths are /v1/{}", [&PATHS[..], &companion::PATHS].concat().join(", "))
    })
}

/// Return the API of a companion server that runs alone.
pub fn alone(server: Arc<Service>) -> Router {
    finish(companion::router(Some(server)), || {
        let paths = companion::PATHS.join(", ");
        format!(
            "a companion server alone (`ws-guard serve`) answers here, with /v1/{paths}; name the guard's socket with --control-socket"
        )
    })
}

/// Return the companion server's part, for a daemon that checks nothing of it.
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

/// Run `work` off the threads that serve connections: map access is system calls.
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
    Json(Info {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        pin_dir: state.pin_dir().to_owned(),
    })
}

async fn status(Shared(state): Shared<State>) -> Answer<Status> {
    blocking(state, |state| Ok(state.status()?)).await
}

async fn flows(Shared(state): Shared<State>) -> Answer<Vec<FlowView>> {
    blocking(state, |state| Ok(state.reader.flows()?)).await
}

/// Pieces of a listing that wait for a slow reader.
const PIECES: usize = 4;

/// Stream the sources, maybe millions. A failure after the head breaks it off.
async fn sources(
    Shared(state): Shared<State>,
    Query(query): Query<SourceQuery>,
) -> Result<Response, ApiError> {
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes, GuardError>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let take = |piece: Vec<u8>| sender.blocking_send(Ok(piece.into())).is_ok();
        if let Err(error) = listing::sources(&state.reader, query.state, take) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    // There is always a first piece, even for an empty list.
    let first = pieces.recv().await.unwrap_or_else(|| Ok(Bytes::new()))?;
    let others =
        stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(first)]), others);
    Ok(streamed(Body::from_stream(all), "application/json"))
}

fn streamed(body: Body, kind: &'static str) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

async fn policy(Shared(state): Shared<State>) -> Answer<PolicySettings> {
    blocking(state, |state| Ok(state.reader.policy()?)).await
}

/// Change the policy and report the changes.
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
    let own = Overrides::from_fields(fields.iter(), network)
        .map_err(|errors| ApiError::unchanged(&errors))?;
    if own.is_empty() {
        return Err(ApiError::bad("nothing to set", "name a setting, such as max_ping_rate"));
    }
    Ok(own)
}

async fn throttle(
    Shared(state): Shared<State>,
    Input(wanted): Input<Throttle>,
) -> Answer<Decision> {
    blocking(state, move |state| {
        let decision = state.operator.throttle(&wanted)?;
        state.tell_throttle();
        Ok(decision)
    })
    .await
}

async fn release(Shared(state): Shared<State>, Input(wanted): Input<Release>) -> Answer<Decision> {
    blocking(state, move |state| state.operator.release(&wanted.source)).await
}

async fn reports(Shared(state): Shared<State>, Input(batch): Input<Reports>) -> Answer<Reported> {
    blocking(state, move |state| {
        let reported = state.operator.report(&batch)?;
        state.tell_throttle();
        Ok(reported)
    })
    .await
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

async fn log_level() -> Answer<LogLevel> {
    match log::level() {
        Some(level) => Ok(Json(LogLevel { level })),
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "the daemon has no log of its own",
            "start it with `ws-guard run`",
        )),
    }
}

async fn set_log_level(
    Shared(state): Shared<State>,
    Input(wanted): Input<LogLevel>,
) -> Answer<LogLevel> {
    log::set_level(&wanted.level).map_err(|error| {
        let remedy = "give error, warn, info, debug or trace, or a filter as RUST_LOG has it";
        ApiError::bad(format!("{:?} is no level: {error}", wanted.level), remedy)
    })?;
    state.events.record(EventView::message("config", format!("log level {}", wanted.level)));
    log_level().await
}

/// Send each event as a line of JSON; with `follow`, without end.
async fn events(
    Shared(state): Shared<State>,
    Query(query): Query<EventQuery>,
) -> Result<Response, ApiError> {
    let (old, follower) = state.events.follow(query.since, query.filter()?);
    let old = old.into_iter().map(|event| Ok::<_, Infallible>(line(&event)));
    let follower = query.follow.then_some(follower);
    let to_come = stream::unfold(follower, |follower: Option<Follower>| async {
        let mut follower = follower?;
        let event = follower.next().await?;
        Some((Ok(line(&event)), Some(follower)))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(stream::iter(old), to_come));
    Ok(streamed(body, "application/x-ndjson"))
}

fn line(event: &Arc<EventView>) -> Bytes {
    // Views hold nothing that JSON cannot represent.
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
        "read with GET, change with PATCH /v1/policy, PUT /v1/log, POST and DELETE",
    )
}
