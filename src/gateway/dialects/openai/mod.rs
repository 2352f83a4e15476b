//! OpenAI's protocols: Responses and Chat Completions, for the libraries that speak them. The model is the agent's name.
//!
//! | file | holds |
//! |---|---|
//! | `completions`, `chat` | Chat Completions: the call, and its translation |
//! | `calls`, `asked`, `response`, `responses` | Responses: the calls, what they ask, the Response object, its events |
//! | `models` | the agents, as models |
//! | `input` | which of a client's messages are new |
//! | `place` | a request becomes a turn, or finds the one that it made before |
//! | `show` | a turn as a stream, or waited for |
//! | `finish`, `errors` | how turns end, and errors, in these protocols' words |

mod asked;
pub(in crate::gateway) mod calls;
mod chat;
pub(in crate::gateway) mod completions;
pub(in crate::gateway) mod errors;
mod finish;
mod input;
pub(in crate::gateway) mod models;
mod place;
mod response;
mod responses;
mod show;

use axum::Router;
use axum::http::HeaderValue;
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};

use crate::gateway::Gateway;
use crate::turn::keys::TurnId;

pub(in crate::gateway) use asked::ResponsesBody;
pub(in crate::gateway) use chat::ChatBody;

/// Names the turn of an answer, by which Lastword's own API knows it.
const TURN: &str = "x-lastword-turn";

/// The routes of both protocols.
pub(super) fn router() -> Router<Gateway> {
    Router::new()
        .route("/openai/v1/chat/completions", post(completions::complete))
        .route("/openai/v1/responses", post(calls::create))
        .route_layer(middleware::from_fn(place::note_arrival))
        .route("/openai/v1/responses/{response}", get(calls::retrieve).delete(calls::delete))
        .route("/openai/v1/responses/{response}/cancel", post(calls::cancel))
        .route("/openai/v1/responses/{response}/input_items", get(calls::input_items))
        .route("/openai/v1/models", get(models::list))
        .route("/openai/v1/models/{*model}", get(models::retrieve))
}

fn with_turn(mut answer: Response, turn: TurnId) -> Response {
    if let Ok(id) = HeaderValue::from_str(&turn.to_string()) {
        answer.headers_mut().insert(TURN, id);
    }
    answer
}
