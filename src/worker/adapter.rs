//! What an adapter is: the thing that turns a message into frames.

use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::log::Log;
use crate::turn::frame::Frame;
use crate::turn::terminal::{Failure, Outcome};
use crate::wire::TurnPush;

/// Runs turns. Everything about gateways, offsets and repetition is done outside.
pub trait Adapter: Send + Sync + 'static {
    /// Runs one turn, or several of one conversation for one reply if the worker asked for `together`; `turns` is never
    /// empty. When `cancel` fires, stop the agent program and return soon; nobody reads the outcome then.
    fn run(
        &self,
        turns: Vec<TurnPush>,
        out: OutputSink,
        cancel: CancellationToken,
    ) -> impl Future<Output = Outcome> + Send;

    /// Ends when the adapter can run no turn any more (its model server died): the worker then leaves.
    fn broken(&self) -> impl Future<Output = Failure> + Send {
        std::future::pending()
    }
}

/// The turn is over for its adapter: cancelled, or its output is too long. Stop the program and return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the turn takes no more output; stop the agent program")]
pub struct Stopped;

/// Where an adapter puts a turn's output.
#[derive(Clone)]
pub struct OutputSink {
    log: Arc<Log>,
    cancel: CancellationToken,
}

impl OutputSink {
    pub(super) fn new(log: Arc<Log>, cancel: CancellationToken) -> Self {
        OutputSink { log, cancel }
    }

    /// Appends a frame. Waits while more than 1 MiB is not yet durable at the gateway: don't read more from the program
    /// meanwhile.
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

    /// Whether the turn has any text so far.
    pub fn has_text(&self) -> bool {
        self.log.has_text()
    }
}
