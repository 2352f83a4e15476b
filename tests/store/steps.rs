//! What only tests of the store do, besides [`crate::support::actors`].

use std::collections::HashMap;

use crate::support::Db;
use crate::support::actors::{ORGANIZATION, USER, Worker, arm, armed};
use lastword::store::{
    Actor, Append, AppendError, Armed, Beat, BeatAnswer, ErasedConversation, Replica, Store, StoreError, WorkerWord,
};
use lastword::turn::frame::{Frame, Span};
use lastword::turn::keys::{ConversationId, GatewayId, Incarnation, TurnId};
use lastword::turn::reason::Reason;
use lastword::turn::terminal::{Failure, Outcome};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

impl Worker {
    /// An error of the agent.
    pub fn error(&self, turns: &[TurnId]) -> WorkerWord {
        let outcome = Outcome::Error(Failure::new(Reason::AgentError));
        WorkerWord { outcome, end: 0, tail: Span::default(), ..self.reply(turns, "") }
    }

    /// Appends text at an offset.
    pub async fn append(&self, store: &Store, turn: TurnId, at: u64, text: &str) -> Result<u64, AppendError> {
        self.append_frames(store, turn, at, vec![Frame::text(text)]).await
    }

    /// Appends frames at an offset.
    pub async fn append_frames(
        &self,
        store: &Store,
        turn: TurnId,
        at: u64,
        frames: Vec<Frame>,
    ) -> Result<u64, AppendError> {
        let span = Span::new(at, frames);
        store.append_output(Append { turn_id: turn, incarnation: self.incarnation, span }).await
    }

    /// A reply whose text, up to `end`, was appended before.
    pub fn ended(&self, turns: &[TurnId], end: u64) -> WorkerWord {
        WorkerWord { end, tail: Span::default(), ..self.reply(turns, "") }
    }

    pub fn beat(&self, busy: bool) -> Beat {
        Beat { incarnation: self.incarnation, busy: Some(busy) }
    }

    /// The sign of life that a finish is.
    pub fn finished(&self) -> Beat {
        Beat { incarnation: self.incarnation, busy: None }
    }
}

/// One tick of a gateway.
pub async fn tick(store: &Store, beats: &[Beat]) -> HashMap<Incarnation, BeatAnswer> {
    try_tick(store, beats).await.expect("ticks")
}

pub async fn try_tick(store: &Store, beats: &[Beat]) -> Result<HashMap<Incarnation, BeatAnswer>, StoreError> {
    let gateway = Replica { id: GatewayId(Uuid::nil()), url: "http://gateway".into(), secret: "s".into() };
    store.heartbeat_of_gateway(&gateway, 60, |_| beats.to_vec()).await
}

impl Db {
    /// Erases `ada`'s conversation of this name; `None`: there is none.
    pub async fn erase(&self, conversation: &str) -> Result<Option<ErasedConversation>, StoreError> {
        match self.store.conversation(ORGANIZATION, USER, conversation).await? {
            Some(found) => {
                let actor = Actor { organization: ORGANIZATION, user: USER, key: Some(Uuid::nil()) };
                self.store.erase_conversation(found.id, actor).await
            }
            None => Ok(None),
        }
    }

    /// `ada`'s conversation of this name, without a turn: those that it had are past their retention.
    pub async fn emptied(&self, conversation: &str) -> ConversationId {
        let turn = armed(&self.store, arm(conversation)).await;
        self.sql(format!("DELETE FROM marker WHERE conversation_id = '{}'", turn.conversation_id)).await;
        self.sql(format!("DELETE FROM turn WHERE conversation_id = '{}'", turn.conversation_id)).await;
        self.sql(format!(
            "UPDATE conversation SET pruned_through = last_number, empty_since = clock_timestamp() WHERE id = '{}'",
            turn.conversation_id
        ))
        .await;
        turn.conversation_id
    }

    /// Arms a turn in this conversation.
    pub async fn armed(&self, conversation: &str) -> Armed {
        armed(&self.store, arm(conversation)).await
    }

    /// Arms a turn in a conversation of its own and lets this worker claim it. Nothing else may be waiting.
    pub async fn in_hand(&self, worker: &Worker) -> TurnId {
        let armed = self.armed(&Uuid::new_v4().to_string()).await;
        assert_eq!(worker.claim_ids(&self.store, 1).await, [armed.turn_id]);
        armed.turn_id
    }

    /// Runs one statement in a transaction of the test's own, which holds its locks until the connection is closed.
    pub async fn locking(&self, statement: &'static str) -> PgConnection {
        // Past a pooler, if there is one.
        let options = self.pool.connect_options();
        let mut connection = PgConnection::connect_with(&options).await.expect("connects");
        for statement in ["BEGIN", statement] {
            sqlx::query(statement).execute(&mut connection).await.expect("locks");
        }
        connection
    }

    /// A worker's lease ran out this long ago.
    pub async fn silent(&self, incarnation: Incarnation, seconds: u32) {
        let statement = "UPDATE lease SET expires_at = clock_timestamp() - interval";
        self.sql(format!("{statement} '{seconds} seconds' WHERE incarnation = '{incarnation}'")).await;
    }

    /// A turn's hard deadline passed an hour ago.
    pub async fn overdue(&self, turn: TurnId) {
        self.sql(format!(
            "UPDATE marker SET armed_at = clock_timestamp() - interval '2 hours',
                    deadline_at = clock_timestamp() - interval '1 hour' WHERE turn_id = '{turn}'"
        ))
        .await;
    }
}
