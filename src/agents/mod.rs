//! The Agents that this process knows: read from the `agent` table, with their guardrails compiled; and what makes an Agent
//! valid, for the YAML file of one machine and for objects of Kubernetes alike.

mod validate;
mod yaml;

pub use yaml::{YamlError, agents_from_yaml};

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crd::{AgentSpec, Scope};
use crate::guard::Guards;
use crate::store::{Store, StoreError};
use crate::turn::keys::Grouping;

/// Between the beginnings of two looks for unknown Agents.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An Agent, ready to be submitted to.
pub struct Agent {
    pub spec: AgentSpec,
    pub guards: Guards,
}

/// Agents by namespace and name.
type ByName = HashMap<(String, String), Arc<Agent>>;

/// The Agents that this replica knows, from the `agent` table.
#[derive(Clone, Default)]
pub struct Agents {
    known: Arc<RwLock<ByName>>,
    /// When the last reading that succeeded began.
    looked: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Agents {
    /// An Agent by namespace and name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Agent>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(namespace.to_string(), name.to_string())).cloned()
    }

    /// An Agent, read from the table if it is not known yet: it may be new, or the table may not have been read at all. Its
    /// absence is certain: the table was read after this was called. Callers share a reading.
    pub async fn find(&self, store: &Store, namespace: &str, name: &str) -> Result<Option<Arc<Agent>>, StoreError> {
        if let Some(agent) = self.get(namespace, name) {
            return Ok(Some(agent));
        }
        let asked = Instant::now();
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|at| at < asked) {
            // Not for each of a flood of unknown names.
            if let Some(at) = *looked {
                tokio::time::sleep_until((at + LOOK_AGAIN).into()).await;
            }
            self.read(store, &mut looked).await?;
        }
        Ok(self.get(namespace, name))
    }

    /// Reads the table again.
    pub async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let mut looked = self.looked.lock().await;
        self.read(store, &mut looked).await
    }

    /// One at a time, so that an older reading never replaces a newer one. An Agent that cannot be read keeps its last
    /// readable form.
    async fn read(&self, store: &Store, looked: &mut Option<Instant>) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut fresh = HashMap::new();
        for stored in store.agents().await? {
            let key = (stored.namespace.clone(), stored.name.clone());
            match Agent::read(stored.spec) {
                Ok(agent) => drop(fresh.insert(key, Arc::new(agent))),
                Err(error) => {
                    tracing::error!(agent = %stored.name, error, "the agent {} cannot be read", stored.name);
                    if let Some(before) = self.get(&key.0, &key.1) {
                        fresh.insert(key, before);
                    }
                }
            }
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        *looked = Some(began);
        Ok(())
    }
}

impl Agent {
    fn read(spec: Value) -> Result<Self, String> {
        let spec: AgentSpec = serde_json::from_value(spec).map_err(|e| e.to_string())?;
        let guards = Guards::compile(&spec.guardrails).map_err(|e| e.to_string())?;
        Ok(Agent { spec, guards })
    }

    /// How its turns are grouped onto workers.
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

    /// An Agent that was not looked for is not a missing one.
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
