//! Follows a turn up to its terminal. On the way, a first Ctrl-C cancels the turn and a second one leaves.

use futures::StreamExt;
use futures::future::OptionFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::view::{TICK, View};
use crate::cli::client::ApiClient;
use crate::cli::error::{CliError, ClientError};
use crate::cli::stream::{EventStream, StreamSource, Streamed, events};
use crate::cli::types::{ApiFailure, EventKind, StreamEvent, SubmitRequest, SubmitResponse, TurnRecord};
use crate::turn::keys::TurnId;

/// A stream of events that can be opened again where it broke off.
pub struct ResumableStream {
    client: ApiClient,
    source: StreamSource,
    cursor: Option<String>,
    stream: Option<EventStream>,
}

impl ResumableStream {
    pub fn new(client: ApiClient, source: StreamSource) -> Self {
        ResumableStream { client, source, cursor: None, stream: None }
    }

    /// The next event. It opens the stream if none is open: at the last cursor after an error, or at the beginning if the
    /// server no longer takes that cursor (410).
    pub async fn next(&mut self) -> Result<Streamed, ClientError> {
        let (client, source, cursor) = (&self.client, &self.source, &self.cursor);
        let stream = self.stream.get_or_insert_with(|| events(client.clone(), source.clone(), cursor.clone()));
        let item = stream.next().await.unwrap_or_else(|| {
            Err(ClientError::Invalid("the turn's stream has ended; read its record with `lastword turns show`".into()))
        });
        match &item {
            Ok(Streamed::Event(StreamEvent { cursor: Some(cursor), .. })) => self.cursor = Some(cursor.clone()),
            Ok(_) => {}
            Err(error) => {
                self.stream = None;
                if error.status() == Some(410) {
                    self.cursor = None;
                }
            }
        }
        item
    }
}

/// How following a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEnd {
    Reply,
    Error(ApiFailure),
    /// The person left. The turn may go on.
    Left,
}

/// When the spinner is drawn again.
pub fn ticker() -> Interval {
    let mut ticker = tokio::time::interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

/// A listener for Ctrl-C. Keep the listener: one made anew for each wait would miss a Ctrl-C between two waits.
pub fn interrupts() -> std::io::Result<Signal> {
    signal(SignalKind::interrupt())
}

/// Submits a message, with a spinner while it takes time. It gives `None` if the person left meanwhile.
pub async fn submit(
    client: &ApiClient,
    conversation: &str,
    message: &SubmitRequest,
    view: &mut View,
) -> Result<Option<SubmitResponse>, CliError> {
    let (noted, mut notes) = mpsc::unbounded_channel();
    let mut on_retry = move |why: &str| {
        let _ = noted.send(format!("{why}; trying again"));
    };
    let mut call = std::pin::pin!(client.submit(conversation, message, &mut on_retry));
    let (mut ticker, mut interrupts) = (ticker(), interrupts()?);
    loop {
        tokio::select! {
            submitted = &mut call => return Ok(Some(submitted?)),
            Some(note) = notes.recv() => view.note(&note)?,
            _ = ticker.tick() => view.tick()?,
            Some(()) = interrupts.recv() => return Ok(None),
        }
    }
}

/// Shows all events up to the turn's `complete`.
pub async fn follow(
    client: &ApiClient,
    stream: &mut ResumableStream,
    turn: TurnId,
    view: &mut View,
) -> Result<TurnEnd, CliError> {
    let (mut ticker, mut interrupts) = (ticker(), interrupts()?);
    let mut failure = None;
    let mut cancelling: Option<JoinHandle<Result<TurnRecord, ClientError>>> = None;
    let mut asked = false;
    loop {
        tokio::select! {
            item = stream.next() => match item? {
                Streamed::Reconnecting { why } => view.note(&format!("{why}; reconnecting"))?,
                Streamed::Event(event) => {
                    view.event(&event)?;
                    if let (EventKind::Error(f) | EventKind::AgentError(f), true) = (&event.kind, event.turn_id == Some(turn)) {
                        failure = Some(f.clone());
                    }
                    if event.completes(turn) {
                        return ended(client, turn, &event, failure).await;
                    }
                }
            },
            Some(cancelled) = OptionFuture::from(cancelling.as_mut()) => {
                cancelling = None;
                if let Ok(Err(error)) = cancelled {
                    view.note(&format!("cannot cancel: {error}"))?;
                }
            }
            _ = ticker.tick() => view.tick()?,
            Some(()) = interrupts.recv() => {
                if asked {
                    return Ok(TurnEnd::Left);
                }
                asked = true;
                view.note("cancelling (Ctrl-C again to leave)")?;
                let client = client.clone();
                cancelling = Some(tokio::spawn(async move { client.cancel(turn).await }));
            }
        }
    }
}

/// How a turn ended whose `complete` was received. If the stream began behind the `error` frame, the error is read from
/// the turn's record.
async fn ended(
    client: &ApiClient,
    turn: TurnId,
    event: &StreamEvent,
    failure: Option<ApiFailure>,
) -> Result<TurnEnd, CliError> {
    let is_error = matches!(&event.kind, EventKind::Complete(complete) if complete.outcome == "error");
    Ok(match (failure, is_error) {
        (Some(failure), _) => TurnEnd::Error(failure),
        (None, false) => TurnEnd::Reply,
        (None, true) => TurnEnd::Error(client.turn(turn).await?.error.unwrap_or_else(|| ApiFailure {
            reason: "Internal".into(),
            message: "the turn failed, and its record does not say why".into(),
            retryable: false,
            detail: None,
        })),
    })
}
