//! Errors as clients read them.

use std::time::Duration;

use amem_core::Error;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The result of a handler.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What is told to a client whose request failed.
///
/// The body has what each kind of client looks for: `detail`, OpenAI's `error` object, and Anthropic's `type`, whose
/// `error` object is the same one.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

/// When a client that met a full queue may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    /// The request makes no sense (400).
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// The request asks for what is not done here (400). Nothing of it was done.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::bad_request(message).param(param);
        Self { code: Some("unsupported_parameter"), ..error }
    }

    /// The body is JSON, but not what is expected (422).
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request_error", message)
    }

    /// Who asks has no key, or a wrong one (401).
    pub fn unauthorized() -> Self {
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "missing or invalid API key");
        Self { code: Some("invalid_api_key"), ..error }
    }

    /// Who asks has no key for what is behind this server (401).
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
    }

    /// Who asks may not do this (403).
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// What is asked about is not there (404).
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// The path is there, but not for this method (405).
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "this path has no such method")
    }

    /// What is asked for contradicts what is there (409).
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
    }

    /// The body, or a part of it, is too large (413).
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    /// The client took too long to send its body (408).
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message)
    }

    /// Too many requests wait (429): the client may come back.
    pub fn overloaded(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { retry_after: Some(RETRY_AFTER), ..error }
    }

    /// It cannot be done at present (503): the client may come back.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message);
        Self { retry_after: Some(RETRY_AFTER), ..error }
    }

    /// What is behind this server failed (502).
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "api_error", message)
    }

    /// What is behind this server did not answer in time (504).
    pub fn gateway_timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message)
    }

    /// Something failed here (500). What it was is in the log, under the request's id.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "api_error", "internal error: the server's log says what it was")
    }

    /// About this parameter of the request.
    #[must_use]
    pub fn param(self, name: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..self }
    }

    /// With a code that programs can tell apart.
    #[must_use]
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The body, which is also what a stream that has begun ends with.
    pub fn body(&self) -> serde_json::Value {
        json!({
            "type": "error",
            "detail": self.message,
            "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code },
        })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Empty { .. } => Self::bad_request(message),
            Error::BadValue { what: "the conversation", .. } => Self::bad_request(message).param("messages"),
            Error::BadValue { what, .. } => Self::bad_request(message).param(what),
            Error::TooLong { .. } => Self::bad_request(message).code("context_length_exceeded"),
            Error::UnknownRecord { .. } => Self::not_found(message),
            Error::NotActive { .. }
            | Error::SameText { .. }
            | Error::KeyTaken { .. }
            | Error::ChangedMeanwhile { .. } => Self::conflict(message),
            Error::Overloaded { .. } => Self::overloaded(message),
            ref full @ Error::KvCacheFull { .. } if !full.lacks_room_for_now() => {
                Self::bad_request(message).code("context_length_exceeded")
            }
            Error::KvCacheFull { .. } | Error::Full { .. } | Error::Cancelled | Error::ReadOnly { .. } => {
                Self::unavailable(message)
            }
            error => Self::internal(&error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
