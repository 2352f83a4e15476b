//! No stream goes out by HTTP/1.0. There a response whose length is not known beforehand ends with its connection, so the cut of
//! a stream and its end look the same; and a client takes an end for "the turn is over". nginx asks in HTTP/1.0, unless it is
//! told otherwise; so a stream that is asked for like that is refused, in words that name the setting.

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;

const REFUSAL: &str = "a stream cannot be served by HTTP/1.0, in which its cut and its end look the same: ask for it by \
                       HTTP/1.1; behind nginx, set `proxy_http_version 1.1;` (docs/proxies.md says what other proxies need)";

/// Middleware of a route that answers with a stream: refuses before anything is done for it.
pub async fn needs_framing(request: Request, next: Next) -> Response {
    if has_framing(request.version()) { next.run(request).await } else { refused() }
}

/// Middleware of a whole port, for a route that lacks [`needs_framing`]: no response of unknown length goes out by HTTP/1.0.
pub async fn never_unframed(request: Request, next: Next) -> Response {
    let version = request.version();
    let response = next.run(request).await;
    if has_framing(version) || response.body().size_hint().exact().is_some() { response } else { refused() }
}

fn has_framing(version: Version) -> bool {
    version >= Version::HTTP_11
}

/// It has no `Upgrade`, which RFC 9110 asks for with 426: nginx passes that header on to clients of HTTP/2, for whom it is
/// malformed, so they would be told of a broken connection in place of the cause.
fn refused() -> Response {
    Problem::new(StatusCode::UPGRADE_REQUIRED, REFUSAL).into_response()
}
