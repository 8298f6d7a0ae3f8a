//! Errors of decisions and requests, as the control API reports them.

use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use ws_guard_common::window::RateError;

use crate::guard::GuardError;

/// Error of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, with the wrong value.
    pub error: String,
    /// Remedy.
    pub remedy: String,
}

/// An error with its HTTP status.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}; {}", body.error, body.remedy)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorBody,
    /// Time after which to try again, where that helps.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        error: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ApiError {
        let body = ErrorBody { error: error.into(), remedy: remedy.into() };
        ApiError { status, body, retry_after: None }
    }

    /// Add a time after which to try again.
    pub fn retry_after(self, time: Duration) -> ApiError {
        ApiError { retry_after: Some(time), ..self }
    }

    /// Create the error of an invalid request.
    pub fn bad(error: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, error, remedy)
    }

    /// Split a message that ends with its remedy, after a colon.
    pub fn refused(message: &str) -> ApiError {
        let (error, remedy) = message.split_once(": ").unwrap_or((message, "correct the request"));
        ApiError::bad(error, remedy)
    }

    /// Create the error of a rejected change, with all that is wrong with it.
    pub fn unchanged(errors: &[String]) -> ApiError {
        ApiError::bad(errors.join("\n"), "nothing was changed; correct the values")
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

impl From<RateError> for ApiError {
    fn from(error: RateError) -> ApiError {
        let what = match error {
            RateError::LimitTooLarge => "the limit is larger than the kernel can keep",
            RateError::WindowOutOfRange => "the window is out of the kernel's range",
        };
        ApiError::bad(what, "choose another limit or window")
    }
}
