//! The model server as a program that the worker starts and watches, where there is no container for it.

use std::process::Stdio;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::turn::cause;
use crate::turn::cause::process::Ended;
use crate::turn::terminal::Failure;
use crate::worker::WorkerError;
use crate::worker::oom;
use crate::worker::process::{Process, agent_command};

/// After SIGTERM, a server that is still there is killed after this time.
const GRACE: Duration = Duration::from_secs(2);

/// A running model server; it ends with this value.
pub(super) struct ModelServer {
    stop: CancellationToken,
    ended: watch::Receiver<Option<Failure>>,
    task: tokio::task::JoinHandle<()>,
}

impl ModelServer {
    /// Starts it. It finds the port of `base_url` in PORT; what it prints goes where our own goes.
    pub(super) async fn start(program: &[String], base_url: &Url) -> Result<Self, WorkerError> {
        let name = program.first().cloned().unwrap_or_default();
        let mut command = agent_command(&name);
        command.args(program.get(1..).unwrap_or_default()).stdin(Stdio::null());
        if let Some(port) = base_url.port_or_known_default() {
            command.env("PORT", port.to_string());
        }
        let kills = oom::kills();
        let process = Process::start(command).await.map_err(|error| WorkerError::Start { program: name, error })?;
        let stop = CancellationToken::new();
        let (tell, ended) = watch::channel(None);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = process.exited() => {
                    let ended = process.wait().await.map_or(Ended::Unknown(None), Ended::from);
                    let _ = tell.send(Some(cause::program::server_end(&ended, oom::kills() > kills)));
                    // Keeps the channel: whoever asks later learns it too.
                    stopped.cancelled().await;
                }
                () = stopped.cancelled() => drop(process.stop(GRACE).await),
            }
        });
        Ok(ModelServer { stop, ended, task })
    }

    /// Becomes the failure of the turns in hand when the server ends by itself.
    pub(super) fn ended(&self) -> watch::Receiver<Option<Failure>> {
        self.ended.clone()
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}
