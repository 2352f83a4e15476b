//! One turn (or several, answered together) from its begin to its accepted last word.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;
use uuid::Uuid;

use super::adapter::{Adapter, OutputSink};
use super::client::{CallError, Client};
use super::link::{Backoff, Link};
use super::log::{Log, Step};
use super::termination;
use crate::turn::cause::program;
use crate::turn::frame::Frame;
use crate::turn::keys::TurnId;
use crate::turn::terminal::Outcome;
use crate::wire::{Finish, FinishResult, Tail, TurnPush};

/// How often the durable offset is asked for while the adapter waits for it.
const POLL: Duration = Duration::from_millis(250);

/// How a job ended.
#[derive(Debug)]
pub(super) enum JobEnd {
    /// The last word was understood.
    Said(FinishResult),
    /// Nothing more is said: cancelled, or not owed.
    Unsaid,
    /// This incarnation is dead to Lastword.
    Dead(CallError),
}

/// What a job needs of the worker.
#[derive(Clone)]
pub(super) struct Reporter {
    pub client: Client,
    pub link: watch::Receiver<Link>,
}

/// The handles by which a job is stopped.
#[derive(Clone)]
pub(super) struct Handles {
    pub log: Arc<Log>,
    /// Stops the agent program.
    pub cancel: CancellationToken,
    /// Stops the reporting: nothing more is said of these turns.
    pub silence: CancellationToken,
}

impl Handles {
    pub(super) fn new(acked: u64) -> Self {
        Handles {
            log: Arc::new(Log::resumed(acked)),
            cancel: CancellationToken::new(),
            silence: CancellationToken::new(),
        }
    }

    /// Stops the program and says nothing more.
    pub(super) fn stop(&self) {
        self.silence.cancel();
        self.cancel.cancel();
    }
}

/// Gives `turns` (never empty) to the adapter and reports. Returns when both are over.
pub(super) async fn run<A: Adapter>(
    adapter: Arc<A>,
    turns: Vec<TurnPush>,
    handles: Handles,
    reporter: Reporter,
) -> JobEnd {
    let ids: Vec<TurnId> = turns.iter().map(|turn| turn.turn_id).collect();
    let out = OutputSink::new(handles.log.clone(), handles.cancel.clone());
    let cancel = handles.cancel.clone();
    let program = tokio::spawn(async move { adapter.run(turns, out, cancel).await });
    let (log, cancel) = (handles.log.clone(), handles.cancel.clone());
    let mut ending = AbortOnDropHandle::new(tokio::spawn(async move {
        let outcome = program.await.unwrap_or_else(|error| Outcome::Error(program::adapter_failed(error)));
        if let Outcome::Error(failure) = &outcome
            && !cancel.is_cancelled()
        {
            // First: what killed the program may kill us before the word is out.
            termination::note(failure);
        }
        log.close(outcome);
    }));
    let end = report(ids, &handles, reporter).await;
    handles.cancel.cancel();
    let _ = (&mut ending).await;
    if !matches!(end, JobEnd::Dead(_)) {
        termination::clear();
    }
    end
}

/// Says what the log holds until its last word is understood.
pub(super) async fn report(turns: Vec<TurnId>, handles: &Handles, reporter: Reporter) -> JobEnd {
    let reply_id = Uuid::now_v7().to_string();
    let mut report = Report { turns, reply_id, log: handles.log.clone(), reporter, pause: Backoff::default() };
    tokio::select! {
        biased;
        () = handles.silence.cancelled() => JobEnd::Unsaid,
        end = report.run() => end,
    }
}

struct Report {
    turns: Vec<TurnId>,
    reply_id: String,
    log: Arc<Log>,
    reporter: Reporter,
    pause: Backoff,
}

impl Report {
    async fn run(&mut self) -> JobEnd {
        let mut link = self.reporter.link.clone();
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
            // A call to a gateway that we have left is not waited for.
            tokio::select! {
                end = self.step(&gateway) => if let Some(end) = end { return end },
                changed = link.changed() => if changed.is_err() { return JobEnd::Unsaid },
            }
        }
    }

    /// The next call, or the wait for a reason to make one.
    async fn step(&mut self, gateway: &Url) -> Option<JobEnd> {
        match self.log.next() {
            Step::Wait => {
                self.log.changed().await;
                None
            }
            Step::Poll { offset } => {
                tokio::time::sleep(POLL).await;
                self.post(gateway, offset, Vec::new()).await
            }
            Step::Post { offset, frames } => self.post(gateway, offset, frames).await,
            Step::Finish { outcome, end, tail } => {
                let finish = Finish {
                    turn_ids: self.turns.clone(),
                    reply_id: self.reply_id.clone(),
                    outcome,
                    end,
                    tail: tail.map(|tail| Tail { offset: tail.start, frames: tail.frames }),
                };
                match self.reporter.client.finish(gateway, &finish).await {
                    Ok(finished) => Some(JobEnd::Said(finished.result)),
                    Err(error) => self.failed(error).await,
                }
            }
        }
    }

    async fn post(&mut self, gateway: &Url, offset: u64, frames: Vec<Frame>) -> Option<JobEnd> {
        let empty = frames.is_empty();
        match self.reporter.client.output(gateway, self.turns[0], offset, frames).await {
            Ok(acked) => {
                if self.log.took(acked) || empty {
                    self.pause = Backoff::default();
                } else {
                    tokio::time::sleep(self.pause.next()).await;
                }
                None
            }
            Err(error) => self.failed(error).await,
        }
    }

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
        tokio::time::sleep(self.pause.next()).await;
        None
    }
}
