//! Lastword's own client API, as `docs/api.md` describes it. Each file holds one area of it, with its handlers, the bodies
//! that they take and give, and the area's `router()`.

mod agents;
mod conversations;
mod events;
mod openapi;
mod records;
mod refusals;
mod streams;
mod submit;
mod tickets;

use axum::Router;

use super::Gateway;

/// The routes of this API.
pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .merge(submit::router())
        .merge(streams::router())
        .merge(tickets::router())
        .merge(records::router())
        .merge(conversations::router())
        .merge(agents::router())
        .merge(openapi::router())
}
