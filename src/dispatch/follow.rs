//! Following: the output of a turn whose worker another replica holds comes from there, over HTTP, as it is produced.
//! Postgres is not on the token path; when a turn cannot be followed, sessions read its log from the store instead.
//!
//! `GET /peer/v1/turns/{id}/frames?after=OFFSET` on the worker port, with the replica's own secret (from the `gateway`
//! table, of one process' life) as a bearer token; NDJSON of [`Piece`], until the turn is in hand there no more.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::feeds::Feeds;
use super::live::LiveLogs;
use crate::store::Store;
use crate::tls::Renewed;
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::{ConversationId, GatewayId, Incarnation, TurnId};

/// A replica that does not answer by then is not followed now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A follower looks this often whether anybody still waits for what it follows.
const WANTED_EVERY: Duration = Duration::from_secs(5);
/// The pause before a turn that could not be followed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest line of a peer, in bytes.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// A piece of a log on its way to another replica.
#[derive(Debug, Serialize, Deserialize)]
pub struct Piece {
    pub start: u64,
    pub frames: Vec<Frame>,
}

/// What other replicas are asked with, of what it trusts.
pub fn client(trusting: reqwest::ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
    trusting.connect_timeout(CONNECT_TIMEOUT).redirect(reqwest::redirect::Policy::none()).no_proxy().build()
}

/// Follows turns for the sessions of this replica, each once.
#[derive(Clone)]
pub struct Follower {
    gateway: GatewayId,
    store: Store,
    live: LiveLogs,
    feeds: Feeds,
    http: Renewed<reqwest::Client>,
    followed: Arc<Mutex<HashSet<TurnId>>>,
}

impl Follower {
    /// `http` is made by [`client`].
    pub fn new(gateway: GatewayId, store: Store, live: LiveLogs, feeds: Feeds, http: Renewed<reqwest::Client>) -> Self {
        Follower { gateway, store, live, feeds, http, followed: Arc::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashSet<TurnId>) -> T) -> T {
        f(&mut self.followed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows a turn from `offset` on, unless it is followed already. Answers at once.
    pub fn follow(&self, turn: TurnId, conversation: ConversationId, worker: Incarnation, offset: u64) {
        if !self.with(|f| f.insert(turn)) {
            return;
        }
        let me = self.clone();
        tokio::spawn(async move {
            if let Err(why) = me.run(turn, conversation, worker, offset).await {
                tracing::debug!(%turn, why, "turn {turn} is read from the store");
            }
            me.live.close_followed(turn);
            // Sessions look at the store, and ask again when the turn goes on.
            me.feeds.store_changed(conversation);
            tokio::time::sleep(AGAIN).await;
            me.with(|f| f.remove(&turn));
        });
    }

    async fn run(
        &self,
        turn: TurnId,
        conversation: ConversationId,
        worker: Incarnation,
        offset: u64,
    ) -> Result<(), String> {
        let replica = self.store.replica_of_worker(worker).await.map_err(|e| e.to_string())?;
        let replica = replica.filter(|r| r.id != self.gateway).ok_or("no other replica holds its worker")?;
        let http = self.http.borrow().clone();
        let response = http
            .get(format!("{}/peer/v1/turns/{turn}/frames?after={offset}", replica.url))
            .bearer_auth(&replica.secret)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(|e| e.without_url().to_string())?;
        if !self.live.open_followed(turn, conversation, worker, offset) {
            return Ok(());
        }
        let mut body = response.bytes_stream();
        let mut buffer = Vec::new();
        loop {
            let part = tokio::select! {
                part = body.next() => part,
                () = tokio::time::sleep(WANTED_EVERY) => {
                    if self.feeds.is_wanted(conversation) { continue } else { return Ok(()) }
                }
            };
            let Some(part) = part else { return Ok(()) };
            buffer.extend_from_slice(&part.map_err(|e| e.without_url().to_string())?);
            while let Some(end) = buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let piece: Piece = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
                if !self.live.accept_followed(turn, Span::new(piece.start, piece.frames)) {
                    return Ok(());
                }
            }
            if buffer.len() > MAX_LINE {
                return Err("a line of the other replica is too long".into());
            }
        }
    }
}
