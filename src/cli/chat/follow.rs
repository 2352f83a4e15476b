//! Following a turn up to its last word, and Ctrl-C on the way: the first cancels the turn, the second leaves.

use futures::StreamExt;
use futures::future::OptionFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use super::view::{TICK, View};
use crate::cli::client::Client;
use crate::cli::stream::{EventStream, Source, Streamed};
use crate::cli::types::{Event, EventKind, Failure, Record, Submit, Submitted};
use crate::cli::{CliError, ClientError};
use crate::turn::keys::TurnId;

/// A stream that can be opened again where it broke off.
pub struct Feed {
    client: Client,
    source: Source,
    cursor: Option<String>,
    stream: Option<EventStream>,
}

impl Feed {
    pub fn new(client: Client, source: Source) -> Self {
        Feed { client, source, cursor: None, stream: None }
    }

    /// The next event; opens the stream if there is none. After an error the next call goes on from the last cursor,
    /// or, if the server no longer takes that, from the beginning.
    pub async fn next(&mut self) -> Result<Streamed, ClientError> {
        let (client, source, cursor) = (&self.client, &self.source, &self.cursor);
        let stream = self.stream.get_or_insert_with(|| client.events(source.clone(), cursor.clone()));
        let item = stream.next().await.unwrap_or_else(|| {
            Err(ClientError::Invalid("the turn's stream has ended; read its record with `lastword turns show`".into()))
        });
        match &item {
            Ok(Streamed::Event(Event { cursor: Some(cursor), .. })) => self.cursor = Some(cursor.clone()),
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
pub enum Ended {
    Reply,
    Error(Failure),
    /// The person left; the turn may go on.
    Left,
}

/// The spinner's clock.
pub fn ticker() -> Interval {
    let mut ticker = tokio::time::interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

/// Ctrl-C, as a listener that is kept: one made anew for each wait would miss what comes between two waits.
pub fn interrupts() -> std::io::Result<Signal> {
    signal(SignalKind::interrupt())
}

/// Submits, showing that it takes time. `None`: the person left.
pub async fn submit(
    client: &Client,
    conversation: &str,
    message: &Submit,
    view: &mut View,
) -> Result<Option<Submitted>, CliError> {
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

/// Shows everything up to the turn's `complete`.
pub async fn follow(client: &Client, feed: &mut Feed, turn: TurnId, view: &mut View) -> Result<Ended, CliError> {
    let (mut ticker, mut interrupts) = (ticker(), interrupts()?);
    let mut failure = None;
    let mut cancelling: Option<JoinHandle<Result<Record, ClientError>>> = None;
    let mut asked = false;
    loop {
        tokio::select! {
            item = feed.next() => match item? {
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
                    return Ok(Ended::Left);
                }
                asked = true;
                view.note("cancelling (Ctrl-C again to leave)")?;
                let client = client.clone();
                cancelling = Some(tokio::spawn(async move { client.cancel(turn).await }));
            }
        }
    }
}

/// What a `complete` means; if its error was shown before our cursor, the record knows it.
async fn ended(client: &Client, turn: TurnId, event: &Event, failure: Option<Failure>) -> Result<Ended, CliError> {
    let is_error = matches!(&event.kind, EventKind::Complete(complete) if complete.outcome == "error");
    Ok(match (failure, is_error) {
        (Some(failure), _) => Ended::Error(failure),
        (None, false) => Ended::Reply,
        (None, true) => Ended::Error(client.turn(turn).await?.error.unwrap_or_else(|| Failure {
            reason: "Internal".into(),
            message: "the turn failed, and its record does not say why".into(),
            retryable: false,
            detail: None,
        })),
    })
}
