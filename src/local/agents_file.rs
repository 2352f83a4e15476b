//! Agents from a YAML file, for one machine: the file is to `lastword dev` what the Kubernetes API is to the controller. It is
//! watched. Its Agents are written to the table `agent`, and Agents that it does not name any more are removed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agents::{YamlError, agents_from_yaml};
use crate::every::Outage;
use crate::store::{Store, StoreError};

/// The pause between a change and the reading of the file: editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the file is read in any case: not every file system tells of changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why the Agents of a file were not taken.
#[derive(Debug, thiserror::Error)]
pub enum AgentsFileError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path}: {error}")]
    Yaml { path: PathBuf, error: YamlError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes the file's Agents to the store, and removes the others. Gives the names of the file's Agents.
///
/// # Errors
/// Nothing is written if the file cannot be read or is not valid; if the database refuses something, a part may be.
pub async fn apply(store: &Store, path: &Path) -> Result<Vec<String>, AgentsFileError> {
    let read = |error| AgentsFileError::Read { path: path.into(), error };
    let text = tokio::fs::read_to_string(path).await.map_err(read)?;
    let agents = agents_from_yaml(&text).map_err(|error| AgentsFileError::Yaml { path: path.into(), error })?;
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

/// Applies the file whenever it changes, until `shutdown`. If it cannot be read or is not valid, the Agents stay as they are.
pub async fn watch(store: Store, path: PathBuf, shutdown: CancellationToken) {
    let (tell, mut told) = mpsc::channel(1);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    // The directory is watched, not the file: editors put a new file in the place of the old one.
    let watcher = notify::recommended_watcher(move |_| {
        // An error means that a wake-up is pending already, and one is enough.
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
    let mut outage = Outage::new("the agents file");
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
            Ok(_) => {
                outage.is_over();
                before = now;
            }
            Err(AgentsFileError::Store(error)) => outage.goes_on(&error),
            Err(error) => {
                tracing::error!("the agents stay as they were: {error}");
                before = now;
            }
        }
    }
}
