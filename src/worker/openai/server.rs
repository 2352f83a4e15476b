//! A model server that the worker itself starts and watches. Used outside Kubernetes; in a pod the model server is a
//! container of its own.

use std::process::Stdio;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::turn::cause;
use crate::turn::cause::process::ProcessEnd;
use crate::turn::terminal::Failure;
use crate::worker::environment::agent_command;
use crate::worker::error::WorkerError;
use crate::worker::oom;
use crate::worker::process::AgentProcess;

/// How long the server has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// The beginning of the names of the adapter's own variables.
const OWN: &str = "LASTWORD_OPENAI_";

/// A running model server. [`ModelServer::stop`] ends it; it ends with the worker at the latest.
pub(super) struct ModelServer {
    stop: CancellationToken,
    /// See [`ModelServer::ended`].
    ended: watch::Receiver<Option<Failure>>,
    task: tokio::task::JoinHandle<()>,
}

impl ModelServer {
    /// Starts the server. The variable PORT tells it the port of `base_url`; it prints to where the worker prints.
    pub(super) async fn start(program: &[String], base_url: &Url) -> Result<Self, WorkerError> {
        let name = program.first().cloned().unwrap_or_default();
        let mut command = agent_command(&name);
        command.args(program.get(1..).unwrap_or_default()).stdin(Stdio::null());
        // What the adapter is told, keys among it, is not for the server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(OWN)) {
            command.env_remove(name);
        }
        if let Some(port) = base_url.port_or_known_default() {
            command.env("PORT", port.to_string());
        }
        let kills = oom::kills();
        let process =
            AgentProcess::start(command).await.map_err(|error| WorkerError::Start { program: name, error })?;
        let stop = CancellationToken::new();
        let (tell, ended) = watch::channel(None);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = process.exited() => {
                    let ended = process.wait().await.map_or(ProcessEnd::Unknown(None), ProcessEnd::from);
                    let _ = tell.send(Some(cause::program::server_end(&ended, oom::kills() > kills)));
                    // The task keeps the sender alive, so that a later caller of `ended` still reads the failure.
                    stopped.cancelled().await;
                }
                () = stopped.cancelled() => drop(process.stop(GRACE).await),
            }
        });
        Ok(ModelServer { stop, ended, task })
    }

    /// Set when the server ends by itself, to the failure of the turns in hand.
    pub(super) fn ended(&self) -> watch::Receiver<Option<Failure>> {
        self.ended.clone()
    }

    /// Stops the server, by force after [`GRACE`].
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}
