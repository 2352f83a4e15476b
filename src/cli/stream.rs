//! Streams of Server-Sent Events that reconnect by themselves.
//!
//! While a turn lacks its terminal, the server aborts a connection rather than end it, and a proxy may end a connection
//! cleanly at any time. So the end of a connection means one thing only: go on from the last cursor. A turn's stream ends
//! with the turn's `complete`, and with nothing else.

use std::pin::Pin;
use std::time::Duration;

use async_stream::try_stream;
use futures::Stream;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response};
use tokio::time::Instant;

use super::client::{ApiClient, cause, problem};
use super::error::ClientError;
use super::patience::Patience;
use super::types::{EventKind, StreamEvent};
use crate::event_stream::{ReadError, ServerEvent, ServerEvents, Strangers};
use crate::turn::keys::TurnId;

/// The longest frame that is taken, in bytes: twice the longest body that a worker may send, for JSON's escapes.
const MAX_FRAME_BYTES: usize = 2 * crate::wire::MAX_BODY_BYTES;
/// A connection that stayed open this long was a good one, even if no event came on it.
const HELD: Duration = Duration::from_secs(10);

/// What to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamSource {
    /// One turn, up to its terminal.
    Turn(TurnId),
    /// All turns of a conversation. This stream has no end.
    Session(String),
}

/// What a stream yields.
#[derive(Debug, Clone)]
pub enum Streamed {
    Event(StreamEvent),
    /// The connection was lost or could not be made, and is made again.
    Reconnecting {
        why: String,
    },
}

/// A stream of events. An error is its last item.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Streamed, ClientError>> + Send>>;

/// The events of a turn or a conversation, from behind the cursor `after` on. It reconnects by itself; a turn's stream
/// ends after the turn's `complete`, a conversation's never.
pub(super) fn events(client: ApiClient, source: StreamSource, after: Option<String>) -> EventStream {
    Box::pin(try_stream! {
        let mut cursor = after;
        let mut patience = Patience::new(client.patience);
        'turn: loop {
            let lost = match open(&client, &source, cursor.as_deref()).await {
                Ok(response) => {
                    let opened = Instant::now();
                    let mut frames = ServerEvents::new(response.bytes_stream(), MAX_FRAME_BYTES, Strangers::Ignored);
                    let lost = loop {
                        let event = match next(&client, &mut frames).await {
                            NextFrame::Event(event) => event,
                            NextFrame::Lost(why) => break client.lost(why),
                            NextFrame::Refused(error) => Err(error)?,
                        };
                        if event.cursor.is_some() {
                            cursor.clone_from(&event.cursor);
                        }
                        if !matches!(event.kind, EventKind::Connected { .. }) {
                            patience.reset();
                        }
                        let over = matches!(&source, StreamSource::Turn(turn) if event.completes(*turn));
                        yield Streamed::Event(event);
                        if over {
                            break 'turn;
                        }
                    };
                    if opened.elapsed() >= HELD {
                        patience.reset();
                    }
                    lost
                }
                Err(error) => error,
            };
            if !is_passing(&lost) || patience.is_over() {
                Err(lost)?;
            } else {
                yield Streamed::Reconnecting { why: lost.to_string() };
                patience.pause().await;
            }
        }
    })
}

/// Whether another try to open the stream may succeed.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => matches!(problem.status, 408 | 429 | 500..=599),
        ClientError::Protocol { .. } | ClientError::Invalid(_) => false,
    }
}

async fn open(client: &ApiClient, source: &StreamSource, cursor: Option<&str>) -> Result<Response, ClientError> {
    let url = match source {
        StreamSource::Turn(turn) => client.url(&["turns", &turn.to_string(), "events"])?,
        StreamSource::Session(conversation) => client.url(&["conversations", conversation, "events"])?,
    };
    let mut request = client.request(Method::GET, url).header(ACCEPT, "text/event-stream");
    if let Some(cursor) = cursor {
        let id = HeaderValue::from_str(cursor)
            .map_err(|_| ClientError::Invalid("the cursor holds characters that no cursor has".into()))?;
        request = request.header("Last-Event-ID", id);
    }
    let response = request.send().await.map_err(|e| client.unreachable(&e))?;
    if !response.status().is_success() {
        return Err(ClientError::Problem(problem(response).await));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("nothing");
    if !kind.starts_with("text/event-stream") {
        return Err(client.protocol(format!("{kind} where a stream of events was expected")));
    }
    Ok(response)
}

enum NextFrame {
    Event(StreamEvent),
    Lost(String),
    Refused(ClientError),
}

async fn next(client: &ApiClient, events: &mut ServerEvents<reqwest::Error>) -> NextFrame {
    let refused = |why: String| NextFrame::Refused(client.protocol(why));
    loop {
        match events.next().await {
            None => return NextFrame::Lost("the connection was closed".into()),
            // As the standard has it, an event without data is none.
            Some(Ok(ServerEvent { data: None, .. })) => {}
            Some(Ok(ServerEvent { name, id, data: Some(data) })) => {
                return match StreamEvent::parse(&name, id.as_deref().unwrap_or_default(), &data) {
                    Ok(event) => NextFrame::Event(event),
                    Err(error) => refused(format!("event {name:?}: {error}")),
                };
            }
            Some(Err(ReadError::Bytes(error))) => return NextFrame::Lost(cause(&error)),
            Some(Err(error)) => return refused(error.to_string()),
        }
    }
}
