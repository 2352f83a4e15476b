//! Errors as OpenAI's libraries read them: `{"error": {message, type, param, code}}`, on every answer below `/openai`.
//!
//! The libraries send a request again on 408, 409, 429 and 5xx, unless the answer has `x-should-retry`.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::finish;
use crate::edge::answers::{OwnErrors, as_problem};
use crate::problem::Problem;
use crate::turn::terminal::Failure;

/// Tells the libraries whether to send a request again.
const SHOULD_RETRY: &str = "x-should-retry";

/// An error of these routes.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct OpenAiError {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<String>,
    /// `None`: as the libraries do by themselves.
    retry: Option<bool>,
    retry_after: Option<HeaderValue>,
}

impl OpenAiError {
    /// 400 for one of the request's fields.
    pub fn bad_field(param: &'static str, message: impl Into<String>) -> Self {
        OpenAiError::from(Problem::bad_request(message)).about(param)
    }

    /// The call's turn has ended without a reply.
    pub fn failed(failure: &Failure) -> Self {
        OpenAiError {
            status: StatusCode::from_u16(finish::status(failure.reason)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: finish::sentence(failure),
            param: None,
            code: Some(failure.reason.as_str().to_owned()),
            retry: Some(false),
            retry_after: None,
        }
    }

    /// The same about a field of the request.
    pub fn about(self, param: &'static str) -> Self {
        OpenAiError { param: Some(param), ..self }
    }

    /// The same with a word that programs know it by.
    pub fn coded(self, code: &str) -> Self {
        OpenAiError { code: Some(code.to_owned()), ..self }
    }

    /// The same of a request that may have armed a turn: the libraries are to send it again only where it is `found_again`.
    pub fn where_found_again(self, found_again: bool) -> Self {
        match self.retry {
            None if self.status.is_server_error() => OpenAiError { retry: Some(found_again), ..self },
            _ => self,
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl From<Problem> for OpenAiError {
    fn from(problem: Problem) -> Self {
        OpenAiError {
            status: problem.status(),
            message: problem.detail().to_owned(),
            param: None,
            code: problem.reason().map(|reason| reason.as_str().to_owned()),
            // The same message id means another turn: that stays so.
            retry: (problem.status() == StatusCode::CONFLICT).then_some(false),
            retry_after: problem.retry_after().map(HeaderValue::from),
        }
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let body = body(&self.message, self.kind(), self.param, self.code.as_deref());
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(retry) = self.retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, after);
        }
        response.extensions_mut().insert(OwnErrors);
        response
    }
}

/// An error's body.
pub(super) fn body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

/// Middleware of the whole client port: below `/openai` every error has OpenAI's shape, whoever refused the request.
pub(in crate::gateway) async fn in_their_shape(request: Request, next: Next) -> Response {
    let theirs =
        request.uri().path().strip_prefix("/openai").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let response = next.run(request).await;
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    if !theirs || !is_error || response.extensions().get::<OwnErrors>().is_some() {
        return response;
    }
    let (parts, body) = as_problem(response).await.into_parts();
    let Some(problem) = parts.extensions.get::<Problem>() else { return Response::from_parts(parts, body) };
    let mut answer = OpenAiError::from(problem.clone()).into_response();
    // Headers such as `Allow` on 405 are kept.
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    drop::<Body>(body);
    answer
}
