//! Agents from a YAML file, on one machine: what Kubernetes' API is to a cluster. The file is watched; what it says is
//! projected into the `agent` table, and an Agent that it no longer names is removed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agents::{YamlError, agents_from_yaml};
use crate::store::{Store, StoreError};

/// Editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// The file is looked at this often, for file systems that tell nothing.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a file's Agents were not taken.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path}: {error}")]
    Yaml { path: PathBuf, error: YamlError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Projects the file's Agents into the store; answers with their names.
pub async fn apply(store: &Store, path: &Path) -> Result<Vec<String>, AgentsError> {
    let read = |error| AgentsError::Read { path: path.into(), error };
    let text = tokio::fs::read_to_string(path).await.map_err(read)?;
    let agents = agents_from_yaml(&text).map_err(|error| AgentsError::Yaml { path: path.into(), error })?;
    let mut named = HashSet::new();
    let mut names = Vec::new();
    for agent in agents {
        let namespace = agent.metadata.namespace.unwrap_or_else(|| "default".into());
        let name = agent.metadata.name.unwrap_or_default();
        let spec = serde_json::to_value(&agent.spec).map_err(|e| StoreError::Refused(e.to_string().into()))?;
        if store.put_agent(&namespace, &name, &spec).await? {
            tracing::info!(agent = %name, "agent {namespace}/{name} is configured");
        }
        names.push(name.clone());
        named.insert((namespace, name));
    }
    for stored in store.agents().await? {
        if !named.contains(&(stored.namespace.clone(), stored.name.clone())) {
            store.remove_agent(&stored.namespace, &stored.name).await?;
            tracing::info!(agent = %stored.name, "agent {}/{} is gone from the file", stored.namespace, stored.name);
        }
    }
    Ok(names)
}

/// Applies the file whenever it changes, until `shutdown`. A file that cannot be taken leaves the Agents as they are.
pub async fn watch(store: Store, path: PathBuf, shutdown: CancellationToken) {
    let (tell, mut told) = mpsc::channel(1);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    // The directory is watched, since editors replace the file.
    let watcher = notify::recommended_watcher(move |_| {
        // One wake-up is as good as several.
        let _ = tell.try_send(());
    })
    .and_then(|mut watcher| {
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watcher {
        tracing::warn!(%error, "{} is not watched, only looked at every {LOOK_EVERY:?}", path.display());
    }
    let mut before = tokio::fs::read(&path).await.ok();
    loop {
        tokio::select! {
            Some(()) = told.recv() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        let now = tokio::fs::read(&path).await.ok();
        if now == before {
            continue;
        }
        match apply(&store, &path).await {
            Ok(_) => before = now,
            Err(AgentsError::Store(error)) => tracing::warn!(%error, "the agents file waits for the database"),
            Err(error) => {
                tracing::error!("the agents stay as they were: {error}");
                before = now;
            }
        }
    }
}
