//! What the routes answer when they do not do what was asked: a status, a code for programs, a
//! sentence for people. Never what was sent.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::EngineError;
use crate::ports::{ApiError, ApiErrorKind};

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Not now: whoever sent it should send it again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// The store or an outside system failed under an operation. The details go to the log alone.
    pub fn of_engine(error: &EngineError, what: &'static str) -> Self {
        tracing::error!("{what} failed: {error}");
        match error {
            EngineError::Refused(reason) => Self::new(StatusCode::CONFLICT, "refused", reason.clone()),
            EngineError::Ambiguous { question, .. } => Self::new(StatusCode::CONFLICT, "ambiguous", question.clone()),
            EngineError::Later { error, .. } => Self::of_api(error),
            EngineError::Store(_) => Self::unavailable("the state cannot be written now; send it again"),
        }
    }

    /// An outside system did not do its part.
    pub fn of_api(error: &ApiError) -> Self {
        let code = match error.kind {
            ApiErrorKind::RateLimited { .. } => "upstream_rate_limited",
            _ if error.is_transient() => "upstream_unavailable",
            _ => "upstream_refused",
        };
        let status = if error.is_transient() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
        // The error names the call and its outcome, and nothing that was sent with it.
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({"error": self.code, "message": self.message}).to_string();
        let mut response = (self.status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}
