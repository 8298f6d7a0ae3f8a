//! Errors of the control API.

use axum::{
    Json,
    extract::rejection::{JsonRejection, PathRejection, QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    ErrorBody,
    routes::{LARGEST_BATCH, LARGEST_BODY},
};
use crate::guard::GuardError;

/// An error with its HTTP status.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}; {}", body.error, body.remedy)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        error: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ApiError {
        ApiError { status, body: ErrorBody { error: error.into(), remedy: remedy.into() } }
    }

    /// A request that cannot be meant.
    pub fn bad(error: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, error, remedy)
    }

    /// A message that already ends in its remedy, behind a colon.
    pub fn refused(message: &str) -> ApiError {
        let (error, remedy) = message.split_once(": ").unwrap_or((message, "correct the request"));
        ApiError::bad(error, remedy)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<GuardError> for ApiError {
    fn from(error: GuardError) -> ApiError {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
            "see the daemon's log and `ws-guard doctor`",
        )
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
