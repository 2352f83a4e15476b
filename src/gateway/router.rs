//! The client port's routes: those of each dialect, and the limits that all of them share.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;

use super::{Gateway, api};
use crate::problem::Problem;

/// Everything that the client port serves.
pub(super) fn router(gateway: Gateway) -> Router {
    Router::new()
        // A further dialect is merged here.
        .merge(api::router())
        .fallback(|| async { Problem::not_found("path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(api::MAX_BODY_BYTES))
        .with_state(gateway)
}
