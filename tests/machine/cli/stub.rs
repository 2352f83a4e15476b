//! A gateway of one turn: a log of frames with their index as cursor, connections that break where told, and submits
//! that are refused as told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_stream::stream;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lastword::turn::keys::TurnId;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::http::serve;

/// How many records `GET /v1/turns` knows; it gives out two a page.
pub const RECORDS: usize = 5;

/// An event's name and its own fields.
pub type Frame = (String, Value);

pub fn frame(event: &str, fields: Value) -> Frame {
    (event.to_string(), fields)
}

pub fn text(text: &str) -> Frame {
    frame("text", json!({"text": text}))
}

pub fn progress(message: &str) -> Frame {
    frame("progress", json!({"message": message}))
}

pub fn complete(outcome: &str) -> Frame {
    frame("complete", json!({"outcome": outcome, "turnIds": [], "messageIds": []}))
}

pub fn error(reason: &str, message: &str, retryable: bool) -> Vec<Frame> {
    let fields = json!({"reason": reason, "message": message, "retryable": retryable});
    vec![frame("error", fields.clone()), frame("agent-error", fields), complete("error")]
}

#[derive(Default)]
struct Script {
    submits: Vec<Value>,
    refusals: VecDeque<u16>,
    cuts: VecDeque<(usize, bool)>,
    resumed: Vec<Option<usize>>,
    written_otherwise: bool,
}

#[derive(Clone)]
pub struct Stub {
    url: String,
    pub turn: TurnId,
    log: watch::Sender<Vec<Frame>>,
    script: Arc<Mutex<Script>>,
}

impl Stub {
    pub async fn start(log: Vec<Frame>) -> Stub {
        let mut stub =
            Stub { url: String::new(), turn: TurnId::new(), log: watch::Sender::new(log), script: Arc::default() };
        let router = Router::new()
            .route("/v1/conversations/{conversation}/turns", post(submit))
            .route("/v1/conversations/{conversation}/events", get(events))
            .route("/v1/turns/{turn}/events", get(events))
            .route("/v1/turns/{turn}/cancel", post(cancel))
            .route("/v1/turns/{turn}", get(record))
            .route("/v1/turns", get(list))
            .with_state(stub.clone());
        stub.url = serve(router).await;
        stub
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next connections break before the frame of this index.
    pub fn cut(&self, at: &[usize], clean: bool) {
        self.script.lock().unwrap().cuts.extend(at.iter().map(|at| (*at, clean)));
    }

    /// The next submits are answered so.
    pub fn refuse(&self, statuses: &[u16]) {
        self.script.lock().unwrap().refusals.extend(statuses);
    }

    /// The stream begins with a byte order mark, and its lines end in CR and LF: as the standard allows, and some proxies do.
    pub fn write_otherwise(&self) {
        self.script.lock().unwrap().written_otherwise = true;
    }

    pub fn submits(&self) -> Vec<Value> {
        self.script.lock().unwrap().submits.clone()
    }

    /// The cursor of each connection so far.
    pub fn resumed(&self) -> Vec<Option<usize>> {
        self.script.lock().unwrap().resumed.clone()
    }

    fn record(&self) -> Value {
        json!({
            "turnId": self.turn, "messageId": "m", "organization": "default", "conversation": "c", "number": 1,
            "agent": "bc", "workerGroup": "bc", "user": "local", "platform": "api", "message": "6*7",
            "phase": "Failed", "armedAt": "2026-01-01T00:00:00Z", "claimedAt": null, "endedAt": "2026-01-01T00:00:09Z",
            "worker": null, "reply": null, "superseded": null,
            "error": {"reason": "OutOfMemory", "message": "m", "retryable": true, "detail": "exit code 137"}
        })
    }
}

async fn submit(State(stub): State<Stub>, Json(body): Json<Value>) -> Response {
    let mut script = stub.script.lock().unwrap();
    script.submits.push(body.clone());
    if let Some(status) = script.refusals.pop_front() {
        let problem = json!({"title": format!("status {status}"), "status": status, "detail": "no such thing"});
        return (StatusCode::from_u16(status).unwrap(), Json(problem)).into_response();
    }
    let armed = json!({
        "turnId": stub.turn, "messageId": body["messageId"], "conversation": "c", "workerGroup": "bc", "cursor": "0"
    });
    drop(script);
    stub.log.send_modify(|_| {});
    (StatusCode::ACCEPTED, Json(armed)).into_response()
}

async fn events(State(stub): State<Stub>, headers: HeaderMap) -> Response {
    let after: Option<usize> = headers.get("last-event-id").map(|id| id.to_str().unwrap().parse().unwrap());
    let (cut, otherwise) = {
        let mut script = stub.script.lock().unwrap();
        script.resumed.push(after);
        (script.cuts.pop_front(), script.written_otherwise)
    };
    let written = move |mark: &str, frame: Bytes| -> Bytes {
        match otherwise {
            true => (mark.to_owned() + &String::from_utf8_lossy(&frame).replace('\n', "\r\n")).into(),
            false => frame,
        }
    };
    let mut log = stub.log.subscribe();
    let body = stream! {
        let mut at = after.unwrap_or(0);
        let connected = json!({"turnId": null, "messageId": null, "conversation": "c", "cursor": at});
        yield Ok(written("\u{feff}", sse(at, "connected", connected)));
        // A session is open before its first turn: nothing is said before somebody asked.
        while stub.script.lock().unwrap().submits.is_empty() {
            if log.changed().await.is_err() { return }
        }
        loop {
            if let Some((_, clean)) = cut.filter(|(cut, _)| *cut == at) {
                if !clean {
                    tokio::task::yield_now().await; // hyper flushes what it has, which an error would discard
                    yield Err(std::io::Error::other("aborted as told"));
                }
                break;
            }
            let next = log.borrow_and_update().get(at).cloned();
            let Some((event, mut data)) = next else {
                if log.changed().await.is_err() { break } else { continue }
            };
            at += 1;
            (data["turnId"], data["messageId"]) = (json!(stub.turn), json!("m"));
            yield Ok(written("", sse(at, &event, data)));
            if event == "complete" && cut.is_none() {
                break;
            }
        }
    };
    ([("content-type", "text/event-stream")], Body::from_stream(body)).into_response()
}

fn sse(id: usize, event: &str, data: Value) -> Bytes {
    format!(": keep-alive\n\nid: {id}\nevent: {event}\ndata: {data}\n\n").into()
}

async fn cancel(State(stub): State<Stub>) -> Json<Value> {
    stub.log.send_modify(|log| log.extend(error("Cancelled", "the turn was cancelled", false)));
    Json(stub.record())
}

async fn record(State(stub): State<Stub>) -> Json<Value> {
    Json(stub.record())
}

async fn list(State(stub): State<Stub>, Query(query): Query<Vec<(String, String)>>) -> Json<Value> {
    let get = |name: &str| query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    // The ids are v7, so a counter in the last digits serves as the page's place.
    let id = |at: usize| format!("01900000-0000-7000-8000-{at:012}");
    let start = get("before").map_or(0, |before| before[24..].parse::<usize>().unwrap() + 1);
    let end = (start + 2.min(get("limit").unwrap().parse().unwrap())).min(RECORDS);
    assert!(get("phase").is_none_or(|phase| phase == "Failed"));
    let record = |at| {
        let mut record = stub.record();
        record["turnId"] = json!(id(at));
        record
    };
    let turns: Vec<Value> = (start..end).map(record).collect();
    let next = (end < RECORDS).then(|| id(end - 1));
    Json(json!({"turns": turns, "next": next}))
}
