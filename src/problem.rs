//! RFC 9457 problem details: the one shape of every error that a client or a worker gets.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::turn::reason::Reason;

/// The media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error as a client sees it. `detail` says what to do; it never holds internals.
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
    /// For 409 on the worker protocol: how far the log is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked: Option<u64>,
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
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn not_found(what: &str) -> Self {
        Problem::new(StatusCode::NOT_FOUND, format!("no such {what}"))
    }

    pub fn unavailable() -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable; try again")
    }

    pub fn with_reason(self, reason: Reason) -> Self {
        Problem { reason: Some(reason), ..self }
    }

    pub fn with_message_id(self, id: &str) -> Self {
        Problem { message_id: Some(id.to_string()), ..self }
    }

    pub fn with_acked(self, acked: u64) -> Self {
        Problem { acked: Some(acked), ..self }
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
