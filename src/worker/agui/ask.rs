//! Posts a run, and passes on what comes of it.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::AgUiArgs;
use super::events::{RunReader, RunStep};
use crate::event_stream::{ReadError, ServerEvents, Strangers};
use crate::turn::cause::model::{self, ModelRefusal};
use crate::turn::frame::Frame;
use crate::turn::terminal::Failure;
use crate::wire::TurnPush;
use crate::worker::adapter::OutputSink;
use crate::worker::upstream::body::body;
use crate::worker::upstream::fault::Fault;
use crate::worker::upstream::route::ServerRoute;

/// What the server is called in failures.
const SERVER: &str = "AG-UI server";
/// What a redirect means.
const REDIRECT: &str = "the URL has to be that of the agent itself";
/// The longest event, in bytes.
const EVENT_BYTES: usize = 4 * 1024 * 1024;

/// One turn's run.
pub(super) struct Run<'a> {
    pub args: &'a AgUiArgs,
    pub route: &'a ServerRoute,
    pub turn: &'a TurnPush,
    pub out: &'a OutputSink,
}

impl Run<'_> {
    /// Posts the run and passes it on.
    pub(super) async fn complete(&self) -> Result<(), Failure> {
        let mut tries_left = self.args.retries;
        loop {
            let failure = match self.once().await {
                Ok(()) => return Ok(()),
                Err(Fault::Final(failure)) => failure,
                Err(Fault::Refused { refusal, detail, again }) => {
                    let failure = model::refused(refusal, self.turn.history.is_empty(), detail);
                    // Without a pause, the connection was lost behind the request: the run may have begun.
                    if let Some(pause) = again.filter(|pause| !pause.is_zero() && tries_left > 0)
                        && refusal == ModelRefusal::MayPass
                        && pause < self.time_left()
                    {
                        self.warn(&failure, &format!("; it is asked again in {} s", pause.as_secs_f32()));
                        tries_left -= 1;
                        sleep(pause).await;
                        continue;
                    }
                    failure
                }
            };
            self.warn(&failure, "");
            return Err(failure);
        }
    }

    fn time_left(&self) -> Duration {
        self.turn.seconds_left.map_or(Duration::MAX, Duration::from_secs)
    }

    /// Operators hear of a failure as soon as it is known.
    fn warn(&self, failure: &Failure, what_follows: &str) {
        let (turn, detail) = (self.turn.turn_id, failure.detail.as_deref().unwrap_or_default());
        tracing::warn!(%turn, reason = %failure.reason, "turn {turn}: {}: {detail}{what_follows}", failure.reason);
    }

    async fn once(&self) -> Result<(), Fault> {
        let idle = Duration::from_secs(self.args.idle_timeout);
        let mut request = self.route.request(Method::POST, "").await.json(&input(self.turn));
        if let Some(parent) = &self.turn.traceparent {
            request = request.header("traceparent", parent);
        }
        let response = match timeout(idle, request.send()).await {
            Err(_) => {
                let detail = format!("the {SERVER} at {} said nothing for {} s", self.route.told(), idle.as_secs());
                return Err(Fault::refused(ModelRefusal::MayPass, detail));
            }
            Ok(Err(error)) => return Err(Fault::unanswered(SERVER, self.route, error)),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(Fault::by_status(SERVER, self.route, response, idle, REDIRECT).await);
        }
        self.pass_on(response, idle).await.map_err(Fault::Final)
    }

    /// Passes the run on. Its end is the event that says so: the end of the stream alone is none.
    async fn pass_on(&self, response: Response, idle: Duration) -> Result<(), Failure> {
        let mut events = ServerEvents::new(body(SERVER, response, idle), EVENT_BYTES, Strangers::Told);
        let mut reader = RunReader::default();
        loop {
            let event = match events.next().await {
                Some(Ok(event)) => event,
                None => return Err(model::broken_off(format!("the {SERVER}'s stream ended before the run did"))),
                Some(Err(ReadError::Bytes(error))) => return Err(model::broken_off(error.to_string())),
                Some(Err(error)) => return Err(model::broken_off(format!("the {SERVER}'s answer: {error}"))),
            };
            match event.data.as_deref().map(|data| reader.take(data)).transpose()? {
                None => {}
                Some(RunStep::Frames(frames)) => self.send(frames).await?,
                Some(RunStep::Over(frames, end)) => {
                    self.send(frames).await?;
                    return end;
                }
            }
        }
    }

    async fn send(&self, frames: Vec<Frame>) -> Result<(), Failure> {
        for frame in frames {
            self.out.send(frame).await.map_err(|stopped| model::broken_off(stopped.to_string()))?;
        }
        Ok(())
    }
}

/// The turn as a run: AG-UI's `RunAgentInput`. The conversation's id is the thread, and the turn's the run, so a server that keeps
/// threads keeps one a conversation.
fn input(turn: &TurnPush) -> Value {
    let said = |role: &str, nth: String, content: &str| json!({"id": nth, "role": role, "content": content});
    let past = turn.history.iter().enumerate().flat_map(|(nth, exchange)| {
        [
            said("user", format!("{nth}-user"), &exchange.message),
            said("assistant", format!("{nth}-assistant"), &exchange.reply),
        ]
    });
    let messages: Vec<Value> = past.chain([said("user", turn.message_id.clone(), &turn.message)]).collect();
    json!({
        "protocolVersion": "1.0",
        "threadId": turn.conversation,
        "runId": turn.turn_id,
        "messages": messages,
        "state": {},
        "tools": [],
        "context": [],
        "forwardedProps": {},
    })
}
