//! The client protocols that other people's libraries speak. Each is a translation without IO: a request becomes a
//! [`ClientMessage`](crate::gateway::messages::ClientMessage), and what a turn's stream is to show becomes the protocol's events.
//! What lies below (arming, ownership, limits, cursors, aborts, keep-alive) is the same for all.
//!
//! | file | holds |
//! |---|---|
//! | `run` | what those dialects share in which a request starts a turn and its answer is the turn's stream |

mod run;

use axum::Router;
use axum::middleware;

use super::Gateway;
use crate::edge::framing::needs_framing;

/// The routes of these dialects.
pub(super) fn router() -> Router<Gateway> {
    // Each dialect's router is merged here.
    Router::new().route_layer(middleware::from_fn(needs_framing))
}
