//! A job: one turn, or several that are answered together, from its begin until the gateway has taken its last word.
//!
//! Two tasks work on it. One runs the adapter, which appends to the [`OutputLog`]; the other reports what the log holds, and
//! goes on with that over changes of gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::adapter::{OutputSink, TurnAdapter};
use super::client::CallError;
use super::gateways::GatewayRoute;
use super::link::{ConnectedClient, pauses};
use super::output_log::{OutputLog, ReportStep};
use super::termination;
use crate::backoff::Backoff;
use crate::telemetry::traces::{TurnSpan, TurnStep};
use crate::turn::cause::program;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::terminal::Outcome;
use crate::wire::{Finish, FinishResult, Tail, TurnPush};

/// How often the durable offset is asked for while the adapter waits for room.
const POLL: Duration = Duration::from_millis(250);

/// How a job ended.
#[derive(Debug)]
pub(super) enum JobEnd {
    /// The gateway decided on the last word.
    Said(FinishResult),
    /// The last word is not owed any more: the turn was cancelled, or ended otherwise.
    Unsaid,
    /// The gateway has ended this incarnation: see [`CallError::is_fatal`].
    Dead(CallError),
}

/// What the worker keeps of a running job: its output, and the means to stop it.
#[derive(Clone)]
pub(super) struct Handles {
    pub log: Arc<OutputLog>,
    /// Stops the agent program.
    pub cancel: CancellationToken,
    /// Stops the reporting, so that nothing more is said about these turns.
    pub silence: CancellationToken,
}

impl Handles {
    /// For a turn whose log is durable up to `acked`, in log units.
    pub(super) fn new(acked: u64) -> Self {
        Handles {
            log: Arc::new(OutputLog::resumed(acked)),
            cancel: CancellationToken::new(),
            silence: CancellationToken::new(),
        }
    }

    /// Stops the agent program and the reporting.
    pub(super) fn stop(&self) {
        self.silence.cancel();
        self.cancel.cancel();
    }
}

/// Gives `turns` (never empty) to the adapter and reports its output. Returns when both the adapter and the reporting have
/// ended.
pub(super) async fn run<A: TurnAdapter>(
    adapter: Arc<A>,
    turns: Vec<TurnPush>,
    handles: Handles,
    client: ConnectedClient,
) -> JobEnd {
    let ids: Vec<TurnId> = turns.iter().map(|turn| turn.turn_id).collect();
    let mut turns = turns;
    let spans: Vec<TurnSpan> = turns.iter_mut().map(begin_span).collect();
    let out = OutputSink::new(handles.log.clone(), handles.cancel.clone());
    let cancel = handles.cancel.clone();
    let program = tokio::spawn(async move { adapter.run(turns, out, cancel).await });
    let (log, cancel) = (handles.log.clone(), handles.cancel.clone());
    let mut ending = AbortOnDropHandle::new(tokio::spawn(async move {
        let outcome = program.await.unwrap_or_else(|error| Outcome::Error(program::adapter_failed(error)));
        if let Outcome::Error(failure) = &outcome
            && !cancel.is_cancelled()
        {
            // The failure is noted in the termination log before it is reported: whatever killed the program may kill
            // this process before the gateway has heard why.
            termination::note(failure);
        }
        log.close(outcome);
    }));
    let end = report(ids, &handles, client).await;
    handles.cancel.cancel();
    let _ = (&mut ending).await;
    drop(spans);
    if !matches!(end, JobEnd::Dead(_)) {
        termination::clear();
    }
    end
}

/// Begins the span of a turn's run. What the agent does, and whom it asks, is within it.
fn begin_span(turn: &mut TurnPush) -> TurnSpan {
    let mut span = TurnSpan::begin(TurnStep::Run, turn.traceparent.as_deref());
    span.says("lastword.turn.id", turn.turn_id);
    turn.traceparent = span.traceparent().or(turn.traceparent.take());
    span
}

/// Reports what the log holds until the gateway has decided on the last word.
pub(super) async fn report(turns: Vec<TurnId>, handles: &Handles, client: ConnectedClient) -> JobEnd {
    let reply_id = Uuid::now_v7().to_string();
    let mut report = JobReporter { turns, reply_id, log: handles.log.clone(), client, pauses: pauses() };
    tokio::select! {
        biased;
        () = handles.silence.cancelled() => JobEnd::Unsaid,
        end = report.run() => end,
    }
}

/// Reports one job.
struct JobReporter {
    turns: Vec<TurnId>,
    reply_id: String,
    log: Arc<OutputLog>,
    client: ConnectedClient,
    /// Between attempts, after a failure.
    pauses: Backoff,
}

impl JobReporter {
    async fn run(&mut self) -> JobEnd {
        let mut link = self.client.link.clone();
        let mut generation = 0;
        loop {
            let Ok(now) = link.wait_for(|link| link.gateway.is_some()).await.map(|now| now.clone()) else {
                return JobEnd::Unsaid;
            };
            let Some(gateway) = now.gateway else { continue };
            if generation != now.generation {
                generation = now.generation;
                self.log.rewind();
            }
            // A call to a gateway that the worker has left is abandoned.
            tokio::select! {
                end = self.step(&gateway) => if let Some(end) = end { return end },
                changed = link.changed() => if changed.is_err() { return JobEnd::Unsaid },
            }
        }
    }

    /// Makes the next call, or waits until there is one to make. Returns the job's end if this was the last call.
    async fn step(&mut self, gateway: &GatewayRoute) -> Option<JobEnd> {
        match self.log.next() {
            ReportStep::Wait => {
                self.log.changed().await;
                None
            }
            ReportStep::Poll { offset } => {
                tokio::time::sleep(POLL).await;
                self.post(gateway, offset, Vec::new()).await
            }
            ReportStep::Post { offset, frames } => self.post(gateway, offset, frames).await,
            ReportStep::Finish { outcome, end, tail } => {
                let finish = Finish {
                    turn_ids: self.turns.clone(),
                    reply_id: self.reply_id.clone(),
                    outcome,
                    finish_reason: self.log.finish_reason(),
                    end,
                    tail: tail.map(|tail| Tail { offset: tail.start, frames: tail.frames }),
                };
                match self.client.calls.finish(gateway, &finish).await {
                    Ok(finished) => Some(JobEnd::Said(finished.result)),
                    Err(error) => self.failed(error).await,
                }
            }
        }
    }

    async fn post(&mut self, gateway: &GatewayRoute, offset: u64, frames: Vec<Frame>) -> Option<JobEnd> {
        let empty = frames.is_empty();
        match self.client.calls.output(gateway, self.turns[0], offset, frames).await {
            Ok(acked) => {
                if self.log.took(acked) || empty {
                    self.pauses.reset();
                } else {
                    tokio::time::sleep(self.pauses.next()).await;
                }
                None
            }
            Err(error) => self.failed(error).await,
        }
    }

    /// Does what a failed call asks for, and pauses. Returns the job's end if the call is not to be repeated.
    async fn failed(&mut self, error: CallError) -> Option<JobEnd> {
        let turn = self.turns[0];
        match error {
            error if error.is_fatal() => return Some(JobEnd::Dead(error)),
            CallError::NotOwed => {
                tracing::info!(%turn, "turn {turn} is not owed any more");
                return Some(JobEnd::Unsaid);
            }
            CallError::Missing(missing) => self.log.missing(missing.acked),
            CallError::Rejected(said) => {
                tracing::error!(%turn, "turn {turn}: a call was rejected: {said}");
                if !self.log.reject(said) {
                    return Some(JobEnd::Unsaid);
                }
            }
            error => tracing::warn!(%turn, "turn {turn}: {error}"),
        }
        tokio::time::sleep(self.pauses.next()).await;
        None
    }
}
