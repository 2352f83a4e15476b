//! The client port's routes: those of each dialect, and the limits that all of them share.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;

use super::origin::{self, ServedHosts};
use super::{Gateway, api, dialects};
use crate::problem::Problem;

/// Everything that the client port serves.
pub(super) fn router(gateway: Gateway, hosts: ServedHosts) -> Router {
    Router::new()
        .merge(api::router())
        .merge(dialects::router())
        .fallback(|| async { Problem::not_found("path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        // Bodies are read by `Bodies::whole` alone.
        .layer(DefaultBodyLimit::max(0))
        .layer(middleware::from_fn_with_state(hosts, origin::admit))
        .layer(middleware::from_fn(dialects::openai::errors::in_their_shape))
        .with_state(gateway)
}
