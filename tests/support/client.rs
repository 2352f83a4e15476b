//! A client of the gateway: submits, records, and Server-Sent Events read by the letter of `docs/api.md`, one at a time as the
//! test asks for them. ([`super::api`] reads them as any client library does, in the background.)

use lastword::turn::keys::{ConversationId, TurnId};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::gateway::AGENT;
use super::wait::within;

/// A client with or without a key. Every call is a connection of its own.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub base: String,
    key: Option<String>,
}

/// A turn as its submit was answered.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    pub turn_id: TurnId,
    pub conversation_id: ConversationId,
    pub cursor: String,
}

impl Client {
    pub fn new(base: &str, key: Option<&str>) -> Client {
        super::crypto();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        Client { http, base: base.to_owned(), key: key.map(str::to_owned) }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// A call's status and JSON; null when the body is none.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(within(path, request.send()).await.expect("an answer")).await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, None).await
    }

    /// Submits and tells what came of it.
    pub async fn try_submit(&self, conversation: &str, message_id: &str, message: &str) -> (StatusCode, Value) {
        self.submit_to(AGENT, conversation, message_id, message).await
    }

    pub async fn submit_to(&self, agent: &str, conversation: &str, id: &str, message: &str) -> (StatusCode, Value) {
        let body = json!({"agent": agent, "message": message, "messageId": id});
        self.call(Method::POST, &format!("/v1/conversations/{conversation}/turns"), Some(body)).await
    }

    /// Submits a new turn.
    pub async fn submit(&self, conversation: &str, message_id: &str, message: &str) -> Submitted {
        let (status, answer) = self.try_submit(conversation, message_id, message).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        serde_json::from_value(answer).expect("as documented")
    }

    pub async fn cancel(&self, turn: TurnId) -> (StatusCode, Value) {
        self.call(Method::POST, &format!("/v1/turns/{turn}/cancel"), Some(json!({}))).await
    }

    pub async fn record(&self, turn: TurnId) -> Value {
        let (status, record) = self.get(&format!("/v1/turns/{turn}")).await;
        assert_eq!(status, StatusCode::OK, "{record}");
        record
    }

    /// Opens a session on a conversation, behind a cursor.
    pub async fn session(&self, conversation: &str, cursor: Option<&str>) -> Stream {
        self.stream(&format!("/v1/conversations/{conversation}/events"), cursor).await.expect("a session")
    }

    /// Opens a turn's stream.
    pub async fn turn_stream(&self, turn: TurnId, cursor: Option<&str>) -> Stream {
        self.stream(&format!("/v1/turns/{turn}/events"), cursor).await.expect("a turn's stream")
    }

    /// Opens a stream, its first frame read; or tells why not.
    pub async fn stream(&self, path: &str, cursor: Option<&str>) -> Result<Stream, StatusCode> {
        let mut request = self.request(Method::GET, path);
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", cursor);
        }
        let response = within(path, request.send()).await.map_err(|_| StatusCode::IM_A_TEAPOT)?;
        if response.status() != StatusCode::OK {
            return Err(response.status());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut stream = Stream { response, buffer: Vec::new(), last_id: cursor.map(str::to_owned), closed: None };
        let first = stream.next().await.map_err(|_| StatusCode::IM_A_TEAPOT)?;
        assert_eq!(first.name, "connected");
        Ok(stream)
    }
}

/// A response's status and JSON.
pub async fn answer(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(kind, "application/problem+json", "every error is a problem: {status}");
    }
    let body = within("the answer's body", response.bytes()).await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// One Server-Sent Event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: Value,
}

impl Event {
    pub fn text(&self) -> &str {
        self.data["text"].as_str().unwrap_or_default()
    }

    pub fn turn(&self) -> TurnId {
        self.data["turnId"].as_str().and_then(|t| t.parse().ok()).expect("a turnId")
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Clean,
    Aborted,
}

/// An open stream of events.
pub struct Stream {
    response: Response,
    buffer: Vec<u8>,
    closed: Option<End>,
    /// What a client would send as Last-Event-ID.
    pub last_id: Option<String>,
}

impl Stream {
    /// The next event, comments passed over; or how the stream ended.
    pub async fn next(&mut self) -> Result<Event, End> {
        within("the next event", self.read()).await
    }

    /// The next event if one is there within `patience`.
    pub async fn next_within(&mut self, patience: std::time::Duration) -> Option<Result<Event, End>> {
        tokio::time::timeout(patience, self.read()).await.ok()
    }

    async fn read(&mut self) -> Result<Event, End> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let frame: Vec<u8> = self.buffer.drain(..at + 2).collect();
                if let Some(event) = parse(&frame) {
                    self.last_id = Some(event.id.clone());
                    return Ok(event);
                }
                continue;
            }
            if let Some(end) = self.closed {
                assert!(end == End::Aborted || self.buffer.is_empty(), "a clean end inside a frame");
                return Err(end);
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => self.closed = Some(End::Clean),
                Err(_) => self.closed = Some(End::Aborted),
            }
        }
    }

    /// Events up to and with the next of this name.
    pub async fn until(&mut self, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(event) => events.push(event),
                Err(end) => panic!("{end:?} before {name:?}: {events:?}"),
            }
            if events.last().is_some_and(|e| e.name == name) {
                return events;
            }
        }
    }

    /// All that is left, and how it ended.
    pub async fn rest(&mut self) -> (Vec<Event>, End) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(event) => events.push(event),
                Err(end) => return (events, end),
            }
        }
    }
}

/// Reads a frame by the letter of this API; comments are none.
fn parse(frame: &[u8]) -> Option<Event> {
    let text = std::str::from_utf8(frame).expect("a frame is UTF-8").trim_end_matches('\n');
    if text.starts_with(':') {
        return None;
    }
    let lines: Vec<&str> = text.split('\n').collect();
    // The first frame of a connection tells an EventSource how soon to come back.
    let lines = if lines[0].starts_with("retry: ") { &lines[1..] } else { &lines[..] };
    let [name, id, data] = lines else { panic!("not three lines: {text:?}") };
    let field = |line: &str, name: &str| line.strip_prefix(name).unwrap_or_else(|| panic!("{name}{line:?}")).to_owned();
    let data = field(data, "data: ");
    assert!(!data.contains('\r'), "{data:?}");
    Some(Event {
        name: field(name, "event: "),
        id: field(id, "id: "),
        data: serde_json::from_str(&data).expect("data is JSON"),
    })
}

/// The names of events.
pub fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.name.as_str()).collect()
}

/// The text of events.
pub fn text(events: &[Event]) -> String {
    events.iter().filter(|e| e.name == "text").map(Event::text).collect()
}
