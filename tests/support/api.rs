//! A client of `docs/api.md` as others write it, with a library for Server-Sent Events: it keeps every frame that it is shown,
//! and how the stream ended. ([`super::client`] reads by the letter.)

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use sse_stream::SseByteStream;
use tokio::sync::watch;

use super::wait::{BOUND, eventually};

/// A client of one gateway.
#[derive(Clone)]
pub struct Api {
    url: String,
    http: reqwest::Client,
    key: Option<String>,
}

/// What an armed turn was acknowledged with.
#[derive(Debug, Clone)]
pub struct Submitted {
    pub turn: String,
    pub cursor: String,
}

/// A frame of a stream.
#[derive(Debug, Clone)]
pub struct Frame {
    pub event: String,
    pub id: String,
    pub data: Value,
    pub at: Instant,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Open,
    Clean,
    Aborted(String),
}

impl Api {
    /// One that shows this API key with every call, if any.
    pub fn new(url: &str, key: Option<&str>) -> Api {
        super::crypto();
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build().unwrap();
        Api { url: url.to_string(), http, key: key.map(str::to_string) }
    }

    fn call(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let call = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => call.bearer_auth(key),
            None => call,
        }
    }

    /// Submits; the status and the body, or why there is no answer.
    pub async fn try_submit(
        &self,
        conversation: &str,
        agent: &str,
        message: &str,
        id: Option<&str>,
    ) -> Result<(u16, Value), reqwest::Error> {
        let mut body = json!({"agent": agent, "message": message});
        if let Some(id) = id {
            body["messageId"] = id.into();
        }
        let call = self.call(Method::POST, &format!("/v1/conversations/{conversation}/turns")).json(&body);
        let answer = call.timeout(Duration::from_secs(30)).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Submits a turn that is armed.
    pub async fn submit(&self, conversation: &str, agent: &str, message: &str) -> Submitted {
        let (status, body) = self.try_submit(conversation, agent, message, None).await.unwrap();
        assert_eq!(status, 202, "{body}");
        let text = |name: &str| body[name].as_str().unwrap().to_string();
        Submitted { turn: text("turnId"), cursor: text("cursor") }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        eventually(path, async || match self.call(Method::GET, path).timeout(BOUND).send().await {
            Ok(answer) => Ok((answer.status().as_u16(), answer.json().await.unwrap())),
            // A replica that was just killed is still asked for a moment; nothing was sent.
            Err(error) if error.is_connect() => Err(error),
            Err(error) => panic!("GET {path}: {error:?}"),
        })
        .await
    }

    pub async fn record(&self, turn: &str) -> Value {
        let (status, record) = self.get(&format!("/v1/turns/{turn}")).await;
        assert_eq!(status, 200, "{record}");
        record
    }

    /// Waits until a turn's record is in this phase.
    pub async fn phase(&self, turn: &str, phase: &str) -> Value {
        eventually(phase, async || {
            let record = self.record(turn).await;
            if record["phase"] == phase { Ok(record) } else { Err(record) }
        })
        .await
    }

    pub async fn cancel(&self, turn: &str) -> Value {
        let call = self.call(Method::POST, &format!("/v1/turns/{turn}/cancel")).json(&json!({}));
        call.send().await.unwrap().json().await.unwrap()
    }

    /// All records of an agent, newest first.
    pub async fn records(&self, agent: &str) -> Vec<Value> {
        let (mut records, mut before) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.get(&format!("/v1/turns?agent={agent}&limit=100{before}")).await;
            assert_eq!(status, 200, "{page}");
            records.extend(page["turns"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return records,
            }
        }
    }

    /// A turn's stream, from its beginning.
    pub fn turn(&self, turn: &str) -> Watched {
        self.watch(format!("/v1/turns/{turn}/events"), None)
    }

    /// A conversation's session.
    pub fn session(&self, conversation: &str, after: Option<&str>) -> Watched {
        self.watch(format!("/v1/conversations/{conversation}/events"), after)
    }

    fn watch(&self, path: String, after: Option<&str>) -> Watched {
        let mut call = self.call(Method::GET, &path).header("Accept", "text/event-stream");
        if let Some(after) = after {
            call = call.header("Last-Event-ID", after);
        }
        let frames = Arc::new(Mutex::new(Vec::new()));
        let (tell, changed) = watch::channel((0, End::Open));
        let task = tokio::spawn(read(call, frames.clone(), tell));
        Watched { frames, changed, _task: Arc::new(Aborts(task)) }
    }
}

async fn read(call: reqwest::RequestBuilder, frames: Arc<Mutex<Vec<Frame>>>, tell: watch::Sender<(usize, End)>) {
    let end = |end| tell.send_modify(|state| state.1 = end);
    let answer = match call.send().await {
        Ok(answer) if answer.status() == 200 => answer,
        Ok(answer) => {
            return end(End::Aborted(format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default())));
        }
        Err(error) => return end(End::Aborted(error.to_string())),
    };
    let mut events = SseByteStream::new(Box::pin(answer.bytes_stream()));
    loop {
        match events.next().await {
            Some(Ok(event)) => {
                let data = event.data.unwrap_or_default();
                let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
                let id = event.id.unwrap_or_default();
                frames.lock().unwrap().push(Frame {
                    event: event.event.unwrap_or_default(),
                    id,
                    data,
                    at: Instant::now(),
                });
                tell.send_modify(|state| state.0 += 1);
            }
            Some(Err(error)) => return end(End::Aborted(error.to_string())),
            None => return end(End::Clean),
        }
    }
}

struct Aborts(tokio::task::JoinHandle<()>);

impl Drop for Aborts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream that is read in the background.
#[derive(Clone)]
pub struct Watched {
    frames: Arc<Mutex<Vec<Frame>>>,
    changed: watch::Receiver<(usize, End)>,
    _task: Arc<Aborts>,
}

impl Watched {
    /// What was shown so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// The names of the frames so far that belong to a turn, in order; with each connection's `connected` first.
    pub fn names(&self, turn: &str) -> Vec<String> {
        let of = |f: &&Frame| f.event == "connected" || f.data["turnId"] == turn || carries(f, turn);
        self.frames().iter().filter(of).map(|f| f.event.clone()).collect()
    }

    pub fn end(&self) -> End {
        self.changed.borrow().1.clone()
    }

    /// Waits for a frame; panics when the stream ends before, or with the bound.
    pub async fn frame(&self, what: &str, is: impl Fn(&Frame) -> bool) -> Frame {
        let mut changed = self.changed.clone();
        let wait = async {
            loop {
                let end = changed.borrow_and_update().1.clone();
                if let Some(found) = self.frames().into_iter().find(|f| is(f)) {
                    return Ok(found);
                }
                if end != End::Open || changed.changed().await.is_err() {
                    return Err(end);
                }
            }
        };
        match tokio::time::timeout(BOUND, wait).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(end)) => panic!("the stream ended ({end:?}) before {what}: {:#?}", self.frames()),
            Err(_) => panic!("not within {BOUND:?}: {what}; shown: {:#?}", self.frames()),
        }
    }

    /// Waits for the first frame of a connection: what comes later is seen as it comes.
    pub async fn connected(&self) -> Frame {
        self.frame("connected", |f| f.event == "connected").await
    }

    /// Waits for a turn's `complete`.
    pub async fn complete(&self, turn: &str) -> Frame {
        self.frame(&format!("the end of turn {turn}"), |f| f.event == "complete" && carries(f, turn)).await
    }

    /// Waits for the end of the stream.
    pub async fn ended(&self) -> End {
        let mut changed = self.changed.clone();
        let ended = tokio::time::timeout(BOUND, changed.wait_for(|(_, end)| *end != End::Open)).await;
        ended.unwrap_or_else(|_| panic!("still open: {:#?}", self.frames())).map(|s| s.1.clone()).unwrap_or(End::Open)
    }

    /// The text that a turn was shown.
    pub fn text(&self, turn: &str) -> String {
        let frames = self.frames();
        let texts = frames.iter().filter(|f| f.event == "text" && f.data["turnId"] == turn);
        texts.map(|f| f.data["text"].as_str().unwrap_or_default()).collect()
    }
}

/// Whether a `complete` ends this turn.
fn carries(frame: &Frame, turn: &str) -> bool {
    frame.data["turnIds"].as_array().is_some_and(|turns| turns.iter().any(|t| t == turn))
}
