//! What browsers are told of pages of other origins (CORS): those that a flag allows may read the API's answers and send what its
//! clients send. A browser asks before it sends anything unusual (a preflight), without a credential, and is answered without one.
//!
//! Cookies are never for other origins: no answer allows credentials, so a browser sends none and passes on no answer to
//! a request that it sent with some.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::CorsLayer;

use super::origin::AllowedOrigin;

/// How long a browser may go by the answer to a preflight. Browsers have limits of their own, some two hours.
const PREFLIGHT_KEPT: Duration = Duration::from_secs(3600);

/// Headers that clients send; those of the OpenAI libraries among them, which send the same from a browser.
const SENT: [HeaderName; 17] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("x-stainless-arch"),
    HeaderName::from_static("x-stainless-lang"),
    HeaderName::from_static("x-stainless-os"),
    HeaderName::from_static("x-stainless-package-version"),
    HeaderName::from_static("x-stainless-retry-count"),
    HeaderName::from_static("x-stainless-runtime"),
    HeaderName::from_static("x-stainless-runtime-version"),
    HeaderName::from_static("x-stainless-timeout"),
];

/// Headers of answers that clients read.
const READ: [HeaderName; 5] = [
    header::RETRY_AFTER,
    header::LOCATION,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-vercel-ai-ui-message-stream"),
];

/// Tells browsers that pages of these origins may call. Requests of other pages do not come here.
pub(super) fn layer(origins: &[AllowedOrigin]) -> CorsLayer {
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok());
    CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(SENT)
        .expose_headers(READ)
        .max_age(PREFLIGHT_KEPT)
}
