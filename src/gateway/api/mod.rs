//! Lastword's own client API, as `docs/api.md` describes it. Each file holds one area of it, with its handlers, the bodies
//! that they take and give, and the area's `router()`.

mod openapi;
mod records;
mod streams;
mod submit;

use axum::Router;

use super::Gateway;

/// The routes of this API.
pub(super) fn router() -> Router<Gateway> {
    Router::new().merge(submit::router()).merge(streams::router()).merge(records::router()).merge(openapi::router())
}
