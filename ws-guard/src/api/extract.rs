//! JSON bodies, queries, paths and answers; rejections are JSON too.

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::operator::error::ApiError;

/// Size limit of a request's body; no request of ours is larger.
pub(super) const LARGEST_BODY: usize = 64 * 1024;
/// Size limit of a batch of reports.
pub(super) const LARGEST_BATCH: usize = 256 * 1024;
/// JSON bodies whose rejections are JSON too.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(ApiError))]
pub(super) struct Input<T>(pub(super) T);

/// Queries whose rejections are JSON too.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub(super) T);

/// Paths whose rejections are JSON too.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Path<T>(pub(super) T);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if let Some(time) = self.retry_after {
            let seconds = time.as_secs_f64().ceil() as u64;
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let (body, batch) = (LARGEST_BODY / 1024, LARGEST_BATCH / 1024);
            let remedy = format!("send at most {body} KiB; of reports {batch} KiB at a time");
            return ApiError::new(rejection.status(), "the request's body is too large", remedy);
        }
        let remedy = "send JSON with content-type application/json and the documented fields";
        ApiError::new(rejection.status(), rejection.body_text(), remedy)
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> ApiError {
        let remedy = "use the documented queries of this path";
        ApiError::new(rejection.status(), rejection.body_text(), remedy)
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> ApiError {
        let remedy = "a connection has a number, as `ws-guard connections` shows it";
        ApiError::new(rejection.status(), rejection.body_text(), remedy)
    }
}
