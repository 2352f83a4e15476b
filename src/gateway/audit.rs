//! Writes down what operators read of others: before they are shown it, and once in a while, however often they look.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::{Audited, Store};
use crate::turn::keys::{ConversationId, TurnId};

/// The same read by the same operator is written down again after this time.
const AGAIN: Duration = Duration::from_secs(600);
/// How many reads are remembered; beyond it, all are forgotten, and so written down again.
const MAX_REMEMBERED: usize = 10_000;

/// What an operator is about to be shown.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    Turn(TurnId),
    Conversation(ConversationId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Turn(turn) => write!(f, "turn {turn}"),
            Subject::Conversation(conversation) => write!(f, "conversation {conversation}"),
        }
    }
}

/// Clones share what was written lately.
#[derive(Clone)]
pub(super) struct ReadAudit {
    store: Store,
    written: Arc<Mutex<HashMap<(String, Audited, String), Instant>>>,
}

impl ReadAudit {
    /// Nothing was written lately.
    pub fn new(store: Store) -> Self {
        ReadAudit { store, written: Arc::default() }
    }

    /// The caller is about to be shown what `owner` owns. Only an operator is shown what others own.
    ///
    /// # Errors
    /// If it cannot be written down; then nothing is shown either.
    pub async fn reads(&self, caller: &ApiCaller, owner: &str, subject: Subject) -> Result<(), Problem> {
        if caller.principal.user == owner {
            return Ok(());
        }
        self.note(caller, Audited::Read, subject.to_string()).await
    }

    /// The caller, an operator, is about to be shown turns of all users.
    ///
    /// # Errors
    /// If it cannot be written down; then nothing is shown either.
    pub async fn lists(&self, caller: &ApiCaller, filter: String) -> Result<(), Problem> {
        self.note(caller, Audited::List, filter).await
    }

    async fn note(&self, caller: &ApiCaller, action: Audited, subject: String) -> Result<(), Problem> {
        let read = (caller.account(), action, subject);
        if self.written().get(&read).is_some_and(|at| at.elapsed() < AGAIN) {
            return Ok(());
        }
        self.store.note_action(caller.actor(), action, &read.2).await?;
        let mut written = self.written();
        if written.len() >= MAX_REMEMBERED {
            written.clear();
        }
        written.insert(read, Instant::now());
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, HashMap<(String, Audited, String), Instant>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
