//! What every answer of every port has in common: an error is a problem detail, and headers tell browsers not to guess, not
//! to embed and not to keep.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;

use super::framing::never_unframed;
use super::http2;
use crate::problem::{self, Problem};

/// The longest error text of the HTTP framework that is passed on, in bytes.
const MAX_REFUSAL: usize = 4096;

/// Set on every answer that does not set them itself. Nothing that a port answers is a page that may load or run anything,
/// may be shown within another page, or be read by another origin's; what is answered is one caller's alone, so nobody on
/// the way keeps it.
static HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// On a response: its error has the shape of its dialect, which is no problem detail.
#[derive(Debug, Clone, Copy)]
pub struct OwnErrors;

/// The same routes, with answers as above. A handler that panics is answered for.
pub(super) fn answering(router: Router) -> Router {
    let panicked = |_: Box<dyn std::any::Any + Send>| {
        tracing::error!("a handler panicked; this is a bug in Lastword");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a fault of Lastword; it was logged").into_response()
    };
    let unframed = middleware::from_fn(never_unframed);
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(unframed)
        .layer(middleware::map_response(finished))
        .layer(middleware::from_fn(http2::with_host))
        .layer(middleware::from_fn(http2::noting))
}

async fn finished(response: Response) -> Response {
    let mut response = as_problem(response).await;
    for (name, value) in &HEADERS {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

/// Makes a problem detail of an error response that is none: what the HTTP framework itself refuses (a query, a method) it
/// answers in plain text.
pub async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    let is_error = status.is_client_error() || status.is_server_error();
    let own = response.extensions().get::<OwnErrors>().is_some();
    if !is_error || own || kind == Some(problem::CONTENT_TYPE.as_bytes()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let said = axum::body::to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
    let detail = match std::str::from_utf8(&said) {
        Ok(text) if !text.is_empty() => text,
        _ => status.canonical_reason().unwrap_or("refused"),
    };
    let mut answer = Problem::new(status, detail).into_response();
    // Headers such as `Allow` on 405 are kept.
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}
