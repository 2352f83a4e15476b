//! The client port's routes: those of each dialect, and the limits that all of them share.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;

use super::origin::{self, AllowedOrigin, ServedHosts};
use super::{Gateway, api, cors, dialects, page};
use crate::problem::Problem;

/// Everything that the client port serves.
pub(super) fn router(gateway: Gateway, hosts: ServedHosts, origins: &[AllowedOrigin]) -> Router {
    let routes = Router::new()
        .merge(api::router())
        .merge(dialects::router())
        .merge(page::router())
        .fallback(|| async { Problem::not_found("path; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method; see /openapi.json")
        })
        // Bodies are read by `Bodies::whole` alone.
        .layer(DefaultBodyLimit::max(0));
    let routes = if origins.is_empty() { routes } else { routes.layer(cors::layer(origins)) };
    // Outermost: what a page of no allowed origin asks is refused before it is answered anything.
    routes
        .layer(middleware::from_fn_with_state(hosts, origin::admit))
        .layer(middleware::from_fn(dialects::openai::errors::in_their_shape))
        .with_state(gateway)
}
