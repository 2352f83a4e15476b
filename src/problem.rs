//! RFC 9457 problem details: the one shape of every error that a client or a worker is answered.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::turn::reason::Reason;

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error as a caller sees it. `detail` says what the caller can do; it never tells internals.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    /// With 409 on the worker protocol: how far the turn's log is known, in log units.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<u64>,
    /// With 429 and 503: the header `Retry-After`, in seconds.
    #[serde(skip)]
    retry_after: u64,
}

impl Problem {
    /// A problem with the status' standard title.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            reason: None,
            message_id: None,
            acked: None,
            retry_after: 1,
        }
    }

    /// 400: `detail` says what is wrong with the request.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 404: there is no such thing as `what` names.
    pub fn not_found(what: &str) -> Self {
        Problem::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    /// 503: the database is away, and the caller may try again.
    pub fn unavailable() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable; try again")
    }

    /// The same with the reason that a turn's terminal would have.
    pub fn with_reason(self, reason: Reason) -> Self {
        Problem { reason: Some(reason), ..self }
    }

    /// The same with the message id under which the request may be sent again.
    pub fn with_message_id(self, id: &str) -> Self {
        Problem { message_id: Some(id.to_string()), ..self }
    }

    /// The same with the end of what is known of a turn's log, in log units.
    pub fn with_acked(self, acked: u64) -> Self {
        Problem { acked: Some(acked), ..self }
    }

    /// The same with the seconds after which the caller may try again, where it is told so: with 429 and 503.
    pub fn with_retry_after(self, seconds: u64) -> Self {
        Problem { retry_after: seconds.max(1), ..self }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What the caller is told to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The reason that a turn's terminal would have.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The seconds after which the caller may try again; `None` where that would be of no use.
    pub fn retry_after(&self) -> Option<u64> {
        // They pass by themselves; without the header, clients of many libraries would not try again.
        let passes = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::TOO_EARLY];
        passes.contains(&self.status()).then_some(self.retry_after)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        // A dialect with another shape of errors makes its own of it.
        response.extensions_mut().insert(self);
        response
    }
}
