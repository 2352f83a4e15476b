//! The Agents that this process knows, read from the `agent` table.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use crate::crd::{AgentSpec, Scope};
use crate::guard::Guards;
use crate::store::{Store, StoreError};
use crate::turn::keys::Grouping;

/// The shortest time between two readings of the table for the sake of unknown names.
const READ_SPACING: Duration = Duration::from_millis(50);

/// An Agent that turns can be submitted to.
pub struct ServedAgent {
    /// What the rest was read from.
    stored: Value,
    pub spec: AgentSpec,
    /// The guardrails of the spec, compiled.
    pub guards: Guards,
}

/// Agents by namespace and name.
type ByName = BTreeMap<(String, String), Arc<ServedAgent>>;

/// The registry of Agents. Clones share one registry.
#[derive(Clone, Default)]
pub struct Agents {
    known: Arc<RwLock<ByName>>,
    /// When the last reading of the table that succeeded began; locked during a reading.
    read_began: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Agents {
    /// The Agent of this namespace and name, if it is known.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<ServedAgent>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(namespace.to_string(), name.to_string())).cloned()
    }

    /// The Agents of this namespace that are known, by name: those behind `after`, at most `limit` of them.
    pub fn list(&self, namespace: &str, after: &str, limit: usize) -> Vec<(String, Arc<ServedAgent>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let behind = (Bound::Excluded((namespace.to_string(), after.to_string())), Bound::Unbounded);
        let ours = known.range(behind).take_while(|((of, _), _)| of == namespace);
        ours.take(limit).map(|((_, name), agent)| (name.clone(), agent.clone())).collect()
    }

    /// The Agent of this namespace and name. If it is not known, the table is read first, since the Agent may be new. So `None`
    /// is certain: the table was read after the call. Callers that come together share one reading.
    ///
    /// # Errors
    /// If the Agent is not known and the table cannot be read.
    pub async fn find(
        &self,
        store: &Store,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ServedAgent>>, StoreError> {
        if let Some(agent) = self.get(namespace, name) {
            return Ok(Some(agent));
        }
        let asked = Instant::now();
        let mut read_began = self.read_began.lock().await;
        if read_began.is_none_or(|at| at < asked) {
            // A flood of unknown names must not become a flood of readings.
            if let Some(at) = *read_began {
                tokio::time::sleep_until((at + READ_SPACING).into()).await;
            }
            self.read(store, &mut read_began).await?;
        }
        Ok(self.get(namespace, name))
    }

    /// Reads the table again.
    ///
    /// # Errors
    /// If the table cannot be read; then the Agents that are known stay.
    pub async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let mut read_began = self.read_began.lock().await;
        self.read(store, &mut read_began).await
    }

    /// Reads the table, under the lock, so that an older reading never replaces a newer one. An Agent whose spec has not changed
    /// is not read again, so that its guardrails are compiled once. One whose spec cannot be read stays as it was read last.
    async fn read(&self, store: &Store, read_began: &mut Option<Instant>) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut fresh = BTreeMap::new();
        for stored in store.agents().await? {
            let before = self.get(&stored.namespace, &stored.name);
            let agent = match before {
                Some(before) if before.stored == stored.spec => Some(before),
                before => match ServedAgent::read(stored.spec) {
                    Ok(agent) => {
                        // Many Agents may be new at once, and other tasks of this thread wait.
                        tokio::task::yield_now().await;
                        Some(Arc::new(agent))
                    }
                    Err(error) => {
                        tracing::error!(agent = %stored.name, error, "the agent {} cannot be read", stored.name);
                        before
                    }
                },
            };
            if let Some(agent) = agent {
                fresh.insert((stored.namespace, stored.name), agent);
            }
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        *read_began = Some(began);
        Ok(())
    }
}

impl ServedAgent {
    fn read(stored: Value) -> Result<Self, String> {
        let spec = AgentSpec::deserialize(&stored).map_err(|e| e.to_string())?;
        let guards = Guards::compile(&spec.guardrails).map_err(|e| e.to_string())?;
        Ok(ServedAgent { stored, spec, guards })
    }

    /// How the Agent's turns are grouped onto workers.
    pub fn grouping(&self) -> Grouping {
        match self.spec.scope {
            Scope::Conversation => Grouping::PerConversation,
            Scope::Agent => Grouping::PerAgent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading that failed must not be taken for one that did not find the Agent.
    #[tokio::test]
    async fn a_look_that_failed_says_nothing() {
        let (agents, store) = (Agents::default(), Store::away());
        let find = || agents.find(&store, "team", "bot");
        // The second one comes while the first looks.
        let found = tokio::join!(find(), find(), agents.find(&store, "team", "bot"));
        assert!(found.0.is_err() && found.1.is_err() && found.2.is_err());
        assert!(find().await.is_err());
    }
}
