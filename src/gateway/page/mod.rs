//! The web page at `/`: chats, and for operators the turns of all users. It is a client of the documented API like any other, made
//! of files in `assets/` that are served as they are; nothing is built, and nothing is loaded from elsewhere.
//!
//! - `files`: the page and its modules
//! - `session`: logging in and out

mod files;
mod session;

use axum::Router;

use super::Gateway;

/// The routes of the page.
pub(super) fn router() -> Router<Gateway> {
    Router::new().merge(files::router()).merge(session::router())
}
