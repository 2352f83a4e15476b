//! Following: where another replica holds a turn's worker, the turn's output comes from that replica over HTTP, as it is
//! produced. So no token waits for Postgres. When a turn cannot be followed, sessions read its log from the store instead.
//!
//! The call is `GET /peer/v1/turns/{id}/frames?after=OFFSET` on the other replica's worker port. The bearer token is that
//! replica's secret, which it made at its start and wrote to the table `gateway`. The answer is NDJSON of [`PeerFrames`],
//! until the worker's stream is no longer there. The first line says where the copy begins, which may be elsewhere than asked:
//! the asker goes by a client's cursor, and that is no measure for others who watch the same turn.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::live::LiveLogs;
use super::subscriptions::Subscriptions;
use crate::lines::Lines;
use crate::store::Store;
use crate::tls::Renewed;
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::{ConversationId, GatewayId, Incarnation, TurnId};
use crate::turn::objects::objects_only;

/// A replica that takes no connection within this time is not followed for now.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The other replica sends a line at least this often, with or without frames.
pub const PING_EVERY: Duration = Duration::from_secs(2);
/// A replica that sends nothing for so long is not followed any more: its machine may be gone without a word.
const SILENCE: Duration = Duration::from_secs(6);
/// The pause before a turn that could not be followed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest line of another replica, in bytes. It holds all of a live log that the follower lacks, as JSON.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// A line of the answer: frames of the followed turn.
#[derive(Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct PeerFrames {
    /// Where the first frame begins in the turn's log, in log units.
    pub start: u64,
    pub frames: Vec<Frame>,
}

/// The HTTP client for other replicas. `trusting` has the certificates that it trusts.
///
/// # Errors
/// If the TLS backend cannot be initialised.
pub fn client(trusting: reqwest::ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
    trusting.connect_timeout(CONNECT_TIMEOUT).redirect(reqwest::redirect::Policy::none()).no_proxy().build()
}

/// Follows turns for the sessions of this replica, each turn once for all of them. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    gateway: GatewayId,
    store: Store,
    live: LiveLogs,
    subscriptions: Subscriptions,
    http: Renewed<reqwest::Client>,
    followed: Arc<Mutex<HashSet<TurnId>>>,
}

impl Follower {
    /// Follows nothing yet. `gateway` is this replica, which is not to ask itself; `http` is made by [`client`].
    pub fn new(
        gateway: GatewayId,
        store: Store,
        live: LiveLogs,
        subscriptions: Subscriptions,
        http: Renewed<reqwest::Client>,
    ) -> Self {
        Follower { gateway, store, live, subscriptions, http, followed: Arc::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashSet<TurnId>) -> T) -> T {
        f(&mut self.followed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows a turn from `offset` on, unless it is followed already. Returns at once; the frames come into the live log.
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
            // Its sessions read the store now, and call this again if the turn goes on.
            me.subscriptions.store_changed(conversation);
            tokio::time::sleep(AGAIN).await;
            me.with(|f| f.remove(&turn));
        });
    }

    /// Passes frames on until the other replica ends its answer or nobody waits for them any more.
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
        let mut body = response.bytes_stream();
        let mut lines = Lines::new(MAX_LINE_BYTES);
        let mut opened = false;
        while let Some(part) =
            tokio::time::timeout(SILENCE, body.next()).await.map_err(|_| "the other replica is silent")?
        {
            if !self.subscriptions.is_wanted(conversation) {
                return Ok(());
            }
            lines.push(&part.map_err(|e| e.without_url().to_string())?);
            while let Some(line) = lines.next() {
                if !line.is_whole() {
                    return Err("a line of the other replica is too long".into());
                }
                let piece: PeerFrames = serde_json::from_slice(&line.bytes).map_err(|e| e.to_string())?;
                if !std::mem::replace(&mut opened, true)
                    && !self.live.open_followed(turn, conversation, worker, piece.start)
                {
                    return Ok(());
                }
                if !self.live.accept_followed(turn, Span::new(piece.start, piece.frames)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

objects_only!(both PeerFrames);
