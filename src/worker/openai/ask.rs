//! Asks for a completion: once, and again where nothing of an answer has come and the trouble may pass.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::answer;
use super::messages::{messages, newer_half, usable};
use super::progress::AnswerProgress;
use super::{OpenAiArgs, SERVER};
use crate::turn::cause::model::{self, ModelRefusal};
use crate::turn::terminal::{Failure, cut};
use crate::wire::{Exchange, TurnPush};
use crate::worker::adapter::OutputSink;
use crate::worker::upstream::fault::{Fault, WORDS_BYTES};
use crate::worker::upstream::route::ServerRoute;

/// What a redirect means.
const REDIRECT: &str = "the base URL has to be that of the API itself";

/// One turn's request.
pub(super) struct Ask<'a> {
    pub args: &'a OpenAiArgs,
    pub route: &'a ServerRoute,
    pub turn: &'a TurnPush,
    pub out: &'a OutputSink,
    pub progress: &'a AnswerProgress,
    /// The turn's hard deadline, if it is known.
    pub turn_until: Option<Instant>,
}

impl Ask<'_> {
    /// Asks for the completion and passes it on.
    pub(super) async fn complete(&self) -> Result<(), Failure> {
        match timeout_at(self.progress.until, self.tries()).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("the completion took longer than {} s", self.args.request_timeout);
                let failure = match self.progress.is_answered() {
                    true => model::broken_off(detail),
                    false => model::unavailable(detail),
                };
                self.warn(&failure, "");
                Err(failure)
            }
        }
    }

    async fn tries(&self) -> Result<(), Failure> {
        let mut history = usable(&self.turn.history);
        let mut tries_left = self.args.retries;
        let mut halved = false;
        // What the tries before were told.
        let mut before = String::new();
        loop {
            let Err(fault) = self.once(&history).await else { return Ok(()) };
            let (refusal, detail, again) = match fault {
                Fault::Final(failure) => {
                    self.warn(&failure, "");
                    return Err(failure);
                }
                Fault::Refused { refusal, detail, again } => (refusal, detail, again),
            };
            let failure = model::refused(refusal, history.is_empty(), format!("{detail}{before}"));
            if refusal == ModelRefusal::TooLong && !halved && !history.is_empty() {
                self.warn(&failure, "; it is asked again without the older half of the conversation");
                halved = true;
                history = newer_half(&history);
            } else if let Some(pause) = again.filter(|_| refusal == ModelRefusal::MayPass && tries_left > 0) {
                let left = self.time_left();
                if pause >= left {
                    let waits = format!(
                        "; it asks for a pause of {} s, and the turn ends in {} s",
                        pause.as_secs(),
                        left.as_secs()
                    );
                    self.warn(&failure, &waits);
                    return Err(Failure { detail: failure.detail.map(|detail| detail + &waits), ..failure });
                }
                self.warn(&failure, &format!("; it is asked again in {} s", pause.as_secs_f32()));
                tries_left -= 1;
                sleep(pause).await;
            } else {
                self.warn(&failure, "");
                return Err(failure);
            }
            before = cut(format!("; the try before: {detail}"), WORDS_BYTES);
        }
    }

    /// How long the turn lasts at the most.
    fn time_left(&self) -> Duration {
        let until = self.turn_until.map_or(self.progress.until, |turn| turn.min(self.progress.until));
        until.saturating_duration_since(Instant::now())
    }

    /// Operators hear of a failure as soon as it is known.
    fn warn(&self, failure: &Failure, what_follows: &str) {
        let (turn, detail) = (self.turn.turn_id, failure.detail.as_deref().unwrap_or_default());
        tracing::warn!(%turn, reason = %failure.reason, "turn {turn}: {}: {detail}{what_follows}", failure.reason);
    }

    /// Asks once.
    async fn once(&self, history: &[&Exchange]) -> Result<(), Fault> {
        let idle = Duration::from_secs(self.args.idle_timeout);
        let messages = messages(self.args.system_prompt.as_deref(), history, &self.turn.message);
        let body = json!({"model": self.args.model, "messages": messages, "stream": true});
        let mut request = self.route.request(Method::POST, "chat/completions").await.json(&body);
        if let Some(parent) = &self.turn.traceparent {
            request = request.header("traceparent", parent);
        }
        let response = match timeout(idle, request.send()).await {
            Err(_) => {
                let detail = format!("the model server at {} said nothing for {} s", self.route.told(), idle.as_secs());
                return Err(Fault::refused(ModelRefusal::MayPass, detail));
            }
            Ok(Err(error)) => return Err(Fault::unanswered(SERVER, self.route, error)),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(Fault::by_status(SERVER, self.route, response, idle, REDIRECT).await);
        }
        answer::pass_on(response, idle, self.progress, self.out).await
    }
}
