//! What an adapter is: it runs an agent's turns, which means that it takes messages and gives frames of output and an outcome.

use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::output_log::{OutputLog, Stopped};
use crate::turn::frame::Frame;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::TurnPush;

/// Runs turns. An adapter knows nothing of gateways, offsets and repeated calls; the rest of the worker sees to those.
pub trait TurnAdapter: Send + Sync + 'static {
    /// Runs one turn; or several turns of one conversation, to be answered by one reply, if the worker asked for `together`.
    /// `turns` is never empty. When `cancel` fires, the adapter stops the agent program and returns soon; its outcome is
    /// ignored then.
    fn run(
        &self,
        turns: Vec<TurnPush>,
        out: OutputSink,
        cancel: CancellationToken,
    ) -> impl Future<Output = Outcome> + Send;

    /// Returns when the adapter can run no turn any more, since its model server ended, say; the worker then leaves.
    fn broken(&self) -> impl Future<Output = Failure> + Send {
        std::future::pending()
    }
}

/// Takes a turn's output from the adapter.
#[derive(Clone)]
pub struct OutputSink {
    log: Arc<OutputLog>,
    cancel: CancellationToken,
}

impl OutputSink {
    pub(super) fn new(log: Arc<OutputLog>, cancel: CancellationToken) -> Self {
        OutputSink { log, cancel }
    }

    /// Appends a frame. Waits while more than 1 MiB of output is not yet durable; an adapter that reads from a program only
    /// after this returned makes the program wait, too.
    ///
    /// # Errors
    /// [`Stopped`] if the turn takes no more output.
    pub async fn send(&self, frame: Frame) -> Result<(), Stopped> {
        let frame = frame.storable();
        let pushed = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Stopped),
            pushed = self.log.push(frame) => pushed,
        };
        if pushed.is_err() {
            self.cancel.cancel();
        }
        pushed
    }

    /// Has the turn fail with this, and the adapter stop, as at an output that is too long.
    pub(super) fn refuse(&self, failure: Failure) -> Stopped {
        let stopped = self.log.refuse(failure);
        self.cancel.cancel();
        stopped
    }

    /// Notes why the model stopped, in the words of its server, to be told with the turn's end.
    pub fn finish_reason(&self, reason: &str) {
        self.log.note_finish_reason(reason);
    }

    /// Whether the turn has any text so far.
    pub fn has_text(&self) -> bool {
        self.log.has_text()
    }
}
