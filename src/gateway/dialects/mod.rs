//! The client protocols that other people's libraries speak. Each is a translation without IO: a request becomes a
//! [`ClientMessage`](crate::gateway::messages::ClientMessage), and what a turn's stream is to show becomes the protocol's events.
//! What lies below (arming, ownership, limits, cursors, aborts, keep-alive) is the same for all.
//!
//! | file | holds |
//! |---|---|
//! | `agui/` | AG-UI |
//! | `openai/` | OpenAI's Responses and Chat Completions |
//! | `ui/` | the UI message stream of the Vercel AI SDK |
//! | `run` | what those dialects share in which a request starts a turn and its answer is the turn's stream |
//! | `input` | reads the newest message of a conversation that a client sends whole |
//! | `tools` | calls of tools, with ids that are unique |

pub(in crate::gateway) mod agui;
mod input;
pub(in crate::gateway) mod openai;
mod run;
mod tools;
pub(in crate::gateway) mod ui;

use axum::Router;
use axum::middleware;

use super::Gateway;
use crate::edge::framing::needs_framing;

/// The routes of these dialects.
pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .merge(agui::router())
        .merge(openai::router())
        .merge(ui::router())
        .route_layer(middleware::from_fn(needs_framing))
}

#[cfg(test)]
mod tests;
