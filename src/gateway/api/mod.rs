//! The client API of Lastword itself: `docs/api.md`.

pub(super) mod records;
pub(super) mod streams;
pub(super) mod submit;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post};

use super::Gateway;
use crate::problem::Problem;

/// The largest body that a client may send, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The routes of the client port.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/v1/conversations/{conversation}/turns", post(submit::submit).get(records::history))
        .route("/v1/conversations/{conversation}/events", get(streams::session))
        .route("/v1/conversations/{conversation}", axum::routing::delete(records::erase))
        .route("/v1/turns", get(records::list))
        .route("/v1/turns/{turn}", get(records::record))
        .route("/v1/turns/{turn}/events", get(streams::turn_stream))
        .route("/v1/turns/{turn}/cancel", post(records::cancel))
        .route("/openapi.json", get(super::openapi::document))
        .fallback(|| async { Problem::not_found("path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(gateway)
}
