//! A worker that speaks the worker protocol and does what a test tells it.

use lastword::store::{NewStart, Store};
use lastword::turn::frame::Frame;
use lastword::turn::keys::{Incarnation, TurnId, WorkerGroup};
use lastword::turn::terminal::Outcome;
use lastword::wire::{
    Acked, Credential, Finish, FinishResult, Finished, Goodbye, GoodbyePhase, Heartbeat, HeartbeatAnswer, INCARNATION,
    Output, Tail, ToWorker, TurnPush,
};
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::actors;
use super::client::answer;
use super::gateway::{AGENT, Gateway, ORGANIZATION};
use super::wait::within;

/// A refusal: status and problem.
pub type Refused = (StatusCode, Value);

/// The reading end of a worker's stream; dropped, the stream is closed.
pub struct Lines {
    lines: mpsc::UnboundedReceiver<ToWorker>,
    reader: JoinHandle<()>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A worker, connected or not.
pub struct FakeWorker {
    /// What it calls with.
    pub http: reqwest::Client,
    pub credential: Credential,
    pub incarnation: Incarnation,
    /// Worker port of the gateway that it speaks to.
    pub gateway: String,
    pub together: bool,
    pub capacity: u32,
    lines: Option<Lines>,
}

/// A start for the worker group `bot` of the gateways' organization, and its credential.
pub fn new_start() -> (NewStart, Credential) {
    let (start, credential) = actors::new_start();
    (
        NewStart {
            organization: ORGANIZATION.into(),
            agent: AGENT.into(),
            worker_group: WorkerGroup::OfAgent,
            ..start
        },
        credential,
    )
}

impl FakeWorker {
    /// Starts one, not yet connected; `change` changes its start.
    pub async fn new(store: &Store, change: impl FnOnce(&mut NewStart)) -> FakeWorker {
        let (mut start, credential) = new_start();
        change(&mut start);
        assert!(store.start_worker(&start, false).await.expect("starts"));
        FakeWorker {
            http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client"),
            credential,
            incarnation: Incarnation::new(),
            gateway: String::new(),
            together: false,
            capacity: 100,
            lines: None,
        }
    }

    /// Starts one and connects it.
    pub async fn on(store: &Store, gateway: &Gateway) -> FakeWorker {
        let mut worker = FakeWorker::new(store, |_| {}).await;
        worker.connect(gateway, &[]).await;
        worker
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(self.credential.reveal()).header(INCARNATION, self.incarnation.to_string())
    }

    /// Opens its stream on a gateway, in place of the one it had, which stays open in the answer.
    pub async fn connect(&mut self, gateway: &Gateway, in_hand: &[TurnId]) -> Option<Lines> {
        self.gateway = gateway.workers.clone();
        self.try_connect(in_hand).await.expect("may connect")
    }

    pub async fn try_connect(&mut self, in_hand: &[TurnId]) -> Result<Option<Lines>, Refused> {
        let turns = in_hand.iter().map(TurnId::to_string).collect::<Vec<_>>().join(",");
        let url = format!(
            "{}/worker/v1/turns?capacity={}&turns={turns}&history=0&together={}",
            self.gateway, self.capacity, self.together
        );
        let mut response = within("connect", self.signed(self.http.get(url)).send()).await.expect("an answer");
        if response.status() != StatusCode::OK {
            return Err(answer(response).await);
        }
        let (send, lines) = mpsc::unbounded_channel();
        let reader = tokio::spawn(async move {
            let mut buffer: Vec<u8> = Vec::new();
            while let Ok(Some(chunk)) = response.chunk().await {
                buffer.extend_from_slice(&chunk);
                while let Some(at) = buffer.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=at).collect();
                    let _ = send.send(serde_json::from_slice(&line).expect("a line of the protocol"));
                }
            }
        });
        let before = self.lines.replace(Lines { lines, reader });
        let hello = self.line().await;
        assert!(matches!(hello, Some(ToWorker::Hello(_))), "{hello:?}");
        Ok(before)
    }

    /// Closes its stream without goodbye.
    pub fn drop_stream(&mut self) {
        self.lines = None;
    }

    /// The next line but pings; `None` when the stream is over.
    pub async fn line(&mut self) -> Option<ToWorker> {
        let lines = &mut self.lines.as_mut().expect("connected").lines;
        loop {
            match within("a line for the worker", lines.recv()).await {
                Some(ToWorker::Ping) => {}
                other => return other,
            }
        }
    }

    /// What was pushed already: turns.
    pub fn pushed(&mut self) -> Vec<TurnId> {
        let Some(lines) = self.lines.as_mut() else { return Vec::new() };
        let mut turns = Vec::new();
        while let Ok(line) = lines.lines.try_recv() {
            if let ToWorker::Turn(turn) = line {
                turns.push(turn.turn_id);
            }
        }
        turns
    }

    /// The next turn that is pushed.
    pub async fn turn(&mut self) -> TurnPush {
        loop {
            match self.line().await.expect("the stream is open") {
                ToWorker::Turn(turn) => return *turn,
                ToWorker::Cancel { .. } => {}
                other => panic!("{other:?} instead of a turn"),
            }
        }
    }

    /// The next turn that is pushed, however long that takes; `None` when the stream is over.
    pub async fn next_turn(&mut self) -> Option<TurnPush> {
        loop {
            match self.lines.as_mut()?.lines.recv().await? {
                ToWorker::Turn(turn) => return Some(*turn),
                _ => continue,
            }
        }
    }

    /// This very turn, pushed sooner or later; others are passed over.
    pub async fn this_turn(&mut self, turn: TurnId) {
        while self.turn().await.turn_id != turn {}
    }

    /// The next turn that is to be stopped.
    pub async fn cancelled(&mut self) -> TurnId {
        match self.line().await.expect("the stream is open") {
            ToWorker::Cancel { turn_id } => turn_id,
            other => panic!("{other:?} instead of a cancel"),
        }
    }

    async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl serde::Serialize) -> Result<A, Refused> {
        let request = self.signed(self.http.post(format!("{}/worker/v1/{path}", self.gateway))).json(body);
        let (status, answer) = match within(path, request.send()).await {
            Ok(response) => answer(response).await,
            Err(_) => (StatusCode::IM_A_TEAPOT, Value::Null),
        };
        if status.is_success() {
            Ok(serde_json::from_value(answer).expect("as documented"))
        } else {
            Err((status, answer))
        }
    }

    pub async fn output(&self, turn: TurnId, offset: u64, frames: Vec<Frame>) -> Result<Acked, Refused> {
        self.post(&format!("turns/{turn}/output?offset={offset}"), &Output { frames }).await
    }

    /// Posts text; answers with the offset behind it.
    pub async fn say(&self, turn: TurnId, offset: u64, text: &str) -> u64 {
        let acked = self.output(turn, offset, vec![Frame::text(text)]).await.expect("taken");
        assert_eq!(acked.received, offset + text.len() as u64);
        acked.received
    }

    pub async fn finish(&self, finish: &Finish) -> Result<FinishResult, Refused> {
        self.post::<Finished>("finish", finish).await.map(|f| f.result)
    }

    /// Replies with a text of which nothing was posted.
    pub async fn reply(&self, turns: &[TurnId], text: &str) -> Result<FinishResult, Refused> {
        self.finish(&whole_reply(turns, text)).await
    }

    /// Ends a turn whose output, up to `end`, was posted.
    pub async fn end(&self, turn: TurnId, end: u64) -> Result<FinishResult, Refused> {
        self.finish(&Finish { end, tail: None, ..whole_reply(&[turn], "") }).await
    }

    /// Says that the agent failed.
    pub async fn fail(&self, turn: TurnId, end: u64) -> Result<FinishResult, Refused> {
        let failure = lastword::turn::terminal::Failure::new(lastword::turn::reason::Reason::AgentError);
        let outcome = Outcome::Error(failure);
        self.finish(&Finish { end, tail: None, outcome, ..whole_reply(&[turn], "") }).await
    }

    pub async fn heartbeat(&self, turns: &[TurnId]) -> Result<HeartbeatAnswer, Refused> {
        self.post("heartbeat", &Heartbeat { turns: turns.to_vec() }).await
    }

    pub async fn goodbye(&self, phase: GoodbyePhase, hand_back: &[TurnId]) -> Result<(), Refused> {
        self.post::<Value>("goodbye", &Goodbye { phase, hand_back: hand_back.to_vec(), reason: None }).await.map(drop)
    }

    async fn run(&self, turn: &TurnPush, piece: usize) -> Result<FinishResult, Refused> {
        let mut at = 0;
        let characters: Vec<char> = turn.message.chars().collect();
        for part in characters.chunks(piece) {
            let text: String = part.iter().collect();
            at = self.output(turn.turn_id, at, vec![Frame::text(text)]).await?.received;
        }
        if turn.message.starts_with("fail") {
            self.fail(turn.turn_id, at).await
        } else {
            self.end(turn.turn_id, at).await
        }
    }

    /// Serves every turn until it is aborted: the reply is the message, streamed in pieces of `piece` characters; a
    /// message that begins with `fail` ends in an error behind its output.
    pub fn serve(mut self, piece: usize) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let Some(ToWorker::Turn(turn)) = self.lines.as_mut().expect("connected").lines.recv().await else {
                    if self.lines.as_ref().is_some_and(|l| l.reader.is_finished()) {
                        return;
                    }
                    continue;
                };
                if let Err((status, problem)) = self.run(&turn, piece).await {
                    // Somebody cancelled or erased it meanwhile: over, to this worker.
                    assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
                }
            }
        })
    }
}

/// A reply whose text comes with it.
pub fn whole_reply(turns: &[TurnId], text: &str) -> Finish {
    let tail = Tail { offset: 0, frames: vec![Frame::text(text)] };
    Finish {
        turn_ids: turns.to_vec(),
        reply_id: Uuid::new_v4().to_string(),
        outcome: Outcome::Reply,
        finish_reason: None,
        end: text.len() as u64,
        tail: Some(tail),
    }
}
