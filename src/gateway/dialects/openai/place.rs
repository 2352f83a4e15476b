//! A request becomes a turn, or finds the turn that it made before.
//!
//! The protocol has no message id. What stands in for it is the request itself: its *digest*, and its place among the turns of
//! that digest (`store/request.rs`).
//!
//! | a request with | means |
//! |---|---|
//! | `Idempotency-Key` | the one turn of this key; with another body 409 |
//! | `x-stainless-retry-count` above 0 | the newest turn of the same principal, route and body, if it is younger than [`RETRY_SECONDS`] |
//! | neither | a new turn |
//!
//! A repeat may overtake the request that it repeats: that one's connection broke, and its arm is still under way. Both would arm
//! the next place, so whichever is committed second is answered with the first's turn. A request that is no repeat and finds its
//! place taken goes on to the next place, unless a repeat took it after the request had come: then that turn is its own. (One that a
//! repeat took before is not: an equal request that somebody makes later on is another turn.)

use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::errors::OpenAiError;
use crate::edge::bodies::WholeBody;
use crate::gateway::Gateway;
use crate::gateway::caller::ApiCaller;
use crate::gateway::messages::{self, ClientMessage, SubmittedTurn};
use crate::problem::Problem;
use crate::store::TurnRequest;
use crate::turn::keys::{check_name, hex};
use crate::turn::routing::API;

/// How old a turn may be that a repeat means. The libraries wait for an answer as long.
const RETRY_SECONDS: u32 = 600;
/// Places that a request tries before it gives up. From the third on it skips some at random, so that many who ask the same at
/// the same time do not meet again.
const TRIES: u32 = 12;

/// When a request came to this gateway.
#[derive(Debug, Clone, Copy)]
pub(in crate::gateway) struct CameAt(Instant);

/// Middleware of the routes that make turns: notes when a request came, before anything of it is looked at.
pub(super) async fn note_arrival(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(CameAt(Instant::now()));
    next.run(request).await
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct AskedTurn {
    /// The route's name, which separates equal bodies of different routes.
    pub route: &'static str,
    pub agent: String,
    /// The caller's name of the conversation, or its id; `None`: one of its own.
    pub conversation: Option<String>,
    pub message: String,
    /// What the agent is told beside it.
    pub told: Value,
    /// See [`TurnRequest::context`].
    pub context: Option<Vec<u8>>,
    /// See [`TurnRequest::asked`].
    pub asked: Option<Value>,
}

/// The turn of a request.
#[derive(Debug)]
pub(super) struct PlacedTurn {
    pub turn: SubmittedTurn,
    /// Whether the same request, sent again, finds it.
    pub found_again: bool,
}

/// Which request this is.
#[derive(Debug, PartialEq, Eq)]
struct RequestMark {
    kind: MarkKind,
    digest: Vec<u8>,
    /// A digest of the body.
    body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MarkKind {
    /// It has a key of its own.
    Keyed,
    /// It repeats another one.
    Repeat,
    /// It may be repeated.
    First,
    /// Its client does not say what it repeats.
    Unmarked,
}

impl RequestMark {
    /// Reads what a request says of itself.
    ///
    /// # Errors
    /// 400 for a header that cannot be read.
    fn read(route: &str, headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Problem::bad_request(format!("the header {name} is not ASCII"))),
        };
        let retries = text("x-stainless-retry-count")?.map(str::parse::<u32>);
        let (kind, parts): (_, [&[u8]; 2]) = match (text("idempotency-key")?, retries) {
            (Some(key), _) => {
                check_name("Idempotency-Key", key).map_err(|e| Problem::bad_request(e.to_string()))?;
                (MarkKind::Keyed, [b"key", key.as_bytes()])
            }
            (None, Some(Ok(0))) => (MarkKind::First, [b"body", body]),
            (None, Some(Ok(_))) => (MarkKind::Repeat, [b"body", body]),
            (None, None | Some(Err(_))) => (MarkKind::Unmarked, [b"once", &Uuid::new_v4().into_bytes()]),
        };
        Ok(RequestMark { kind, digest: digest(&[route.as_bytes(), parts[0], parts[1]]), body: digest(&[body]) })
    }

    /// Whether the same request, sent again, finds the turn.
    fn is_found_again(&self) -> bool {
        self.kind != MarkKind::Unmarked
    }

    /// The name of a place: a turn's message id, and the conversation of one that is in none.
    fn name(&self, place: i32) -> String {
        format!("openai-{}-{place}", hex(&self.digest[..16]))
    }
}

/// A digest of these parts, in which no two lists of parts are the same.
pub(super) fn digest(parts: &[&[u8]]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

/// Makes the turn that a request asks for, or finds the one that it made before.
///
/// # Errors
/// What can be refused before there is a turn. Where it is not known whether there is one, the error says whether the request may
/// be sent again.
pub(super) async fn place(
    gateway: &Gateway,
    caller: &ApiCaller,
    headers: &HeaderMap,
    (body, came): (&WholeBody, CameAt),
    asked: AskedTurn,
) -> Result<PlacedTurn, OpenAiError> {
    let mark = RequestMark::read(asked.route, headers, body.bytes())?;
    let found_again = mark.is_found_again();
    match place_marked(gateway, caller, headers, (mark, came), asked).await {
        Ok(turn) => Ok(PlacedTurn { turn, found_again }),
        Err(error) => Err(error.where_found_again(found_again)),
    }
}

async fn place_marked(
    gateway: &Gateway,
    caller: &ApiCaller,
    headers: &HeaderMap,
    (mark, came): (RequestMark, CameAt),
    asked: AskedTurn,
) -> Result<SubmittedTurn, OpenAiError> {
    let principal = &caller.principal;
    let newest = match mark.kind {
        MarkKind::Unmarked => None,
        _ => {
            let (organization, user) = (&principal.organization, &principal.user);
            let waited = came.0.elapsed();
            let newest = gateway.store.newest_request(organization, user, &mark.digest, RETRY_SECONDS, waited).await;
            newest.map_err(Problem::from)?
        }
    };
    let (mut at, found) = match (mark.kind, newest) {
        (_, None) => (0, None),
        (MarkKind::Keyed, Some(newest)) if newest.body != mark.body => {
            let said = "this Idempotency-Key was used before, with another body";
            return Err(Problem::new(StatusCode::CONFLICT, said).into());
        }
        (MarkKind::Keyed, Some(newest)) => (newest.place, Some(newest)),
        (MarkKind::Repeat, Some(newest)) if newest.recent => (newest.place, Some(newest)),
        (MarkKind::First, Some(newest)) if newest.overtook => (newest.place, Some(newest)),
        (_, Some(newest)) => (newest.place.saturating_add(1), None),
    };
    for tried in 0..TRIES {
        let name = mark.name(at);
        let (conversation, message_id) = match found.as_ref().filter(|_| tried == 0) {
            Some(found) => (found.conversation.clone(), found.message_id.clone()),
            None => (asked.conversation.clone().unwrap_or_else(|| name.clone()), name),
        };
        let message = ClientMessage {
            agent: asked.agent.clone(),
            conversation,
            message_id,
            message: asked.message.clone(),
            platform: API.to_string(),
            platform_metadata: asked.told.clone(),
        };
        let mut submission = messages::submission(gateway, caller, headers, None, message).await?;
        submission.request = Some(TurnRequest {
            digest: mark.digest.clone(),
            place: at,
            body: mark.body.clone(),
            by_retry: mark.kind == MarkKind::Repeat,
            context: asked.context.clone(),
            asked: asked.asked.clone(),
        });
        let turn = messages::arm(gateway, submission).await?;
        let is_its_own = turn.armed.fresh
            || mark.kind != MarkKind::First
            || gateway.store.take_repeated(turn.armed.turn_id, came.0.elapsed()).await.map_err(Problem::from)?;
        if is_its_own {
            return Ok(turn);
        }
        let spread = 1_u32 << tried.saturating_sub(1).min(16);
        let skipped = Uuid::new_v4().as_fields().0 % spread;
        at = at.saturating_add(1).saturating_add(i32::try_from(skipped).unwrap_or(0));
    }
    let said = "too many of the same request at the same time; try again";
    Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, said).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(headers: &[(&str, &str)], route: &str, body: &str) -> RequestMark {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().expect("a name");
            map.insert(name, value.parse().expect("a value"));
        }
        RequestMark::read(route, &map, body.as_bytes()).expect("readable")
    }

    #[test]
    fn a_repeat_has_the_digest_of_what_it_repeats_and_nothing_else_has() {
        let first = mark(&[("x-stainless-retry-count", "0")], "chat", "{}");
        let again = mark(&[("x-stainless-retry-count", "2")], "chat", "{}");
        assert_eq!((first.kind, again.kind), (MarkKind::First, MarkKind::Repeat));
        assert_eq!((&first.digest, first.name(3)), (&again.digest, again.name(3)));
        assert_ne!(first.digest, mark(&[("x-stainless-retry-count", "1")], "responses", "{}").digest);
        assert_ne!(first.digest, mark(&[("x-stainless-retry-count", "1")], "chat", "{ }").digest);
        let key =
            |key: &str, body: &str| mark(&[("idempotency-key", key), ("x-stainless-retry-count", "1")], "chat", body);
        assert_eq!((key("a", "{}").kind, key("a", "{}").digest), (MarkKind::Keyed, key("a", "{ }").digest));
        assert_ne!(key("a", "{}").body, key("a", "{ }").body);
        assert_ne!(key("a", "{}").digest, key("b", "{}").digest);
    }

    #[test]
    fn a_client_that_marks_nothing_makes_a_turn_with_each_request() {
        let (one, other) = (mark(&[], "chat", "{}"), mark(&[("x-stainless-retry-count", "x")], "chat", "{}"));
        assert!(one.kind == MarkKind::Unmarked && other.kind == MarkKind::Unmarked);
        assert!(one.digest != other.digest && !one.is_found_again());
    }

    #[test]
    fn a_key_is_a_name() {
        for wrong in ["", &"x".repeat(257)] {
            let headers = [("idempotency-key", wrong)].into_iter();
            let map: HeaderMap = headers.map(|(n, v)| (n.parse().expect("n"), v.parse().expect("v"))).collect();
            assert!(RequestMark::read("chat", &map, b"").is_err());
        }
    }
}
