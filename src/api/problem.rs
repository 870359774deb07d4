//! Errors as RFC 9457 problem details.
//!
//! `type` is `urn:ledgermq:problem:{code}`: a program branches on it, a person reads `detail`.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde::{Deserialize, Serialize};

use super::view::{SubmitError, ViewError};

/// The media type of problem details.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What every `type` begins with.
const TYPE_PREFIX: &str = "urn:ledgermq:problem:";

/// Why a request was not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:ledgermq:problem:{code}`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What kind of problem it is, for a person.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request, and what to do.
    pub detail: String,
}

impl Problem {
    fn new(status: StatusCode, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    /// A parameter or body that is not what the route takes.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is malformed", detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// The route does not take this method.
    pub fn method_not_allowed(allowed: &str) -> Self {
        let detail = format!("this route takes {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    }

    /// The body is longer than the node reads.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    /// The body is of another media type.
    pub fn not_json() -> Self {
        let detail = "send the body as application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Unsupported media type", detail)
    }

    /// The ledger was asked, and refused.
    pub fn rejected(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "rejected", "The ledger rejected the operation", detail)
    }

    /// The node cannot do it now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The node is not available", detail)
    }

    /// It took too long.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "Timeout", detail)
    }

    /// Something broke; the node's log says what.
    pub fn internal() -> Self {
        let detail = "the node could not read its ledger; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.status_code() == StatusCode::SERVICE_UNAVAILABLE {
            response.insert_header(("retry-after", "1"));
        }
        response.content_type(MEDIA_TYPE).body(serde_json::to_string(self).unwrap_or_default())
    }
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Failed(reason) => {
                tracing::error!(%reason, "a read of the ledger failed");
                Self::internal()
            }
            ViewError::Stopping => Self::unavailable("the node is stopping; ask another one"),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        match error {
            SubmitError::Invalid(_) => Self::bad_request(detail),
            SubmitError::Rejected(_) => Self::rejected(detail),
            SubmitError::Overloaded | SubmitError::Stopping => Self::unavailable(detail),
            SubmitError::Timeout => Self::timeout(detail),
        }
    }
}
