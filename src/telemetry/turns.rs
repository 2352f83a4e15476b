//! What is told of turns: each step that this process has committed is counted, measured, traced, and, if a turn failed, logged
//! in one line. The store tells it behind the commit, so what was rolled back is told by nobody, and what another process ended
//! is told there.

use super::traces::{TurnStep, step};
use crate::metrics::METRICS;
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;

/// A turn that something happened to.
#[derive(Debug, Clone)]
pub struct ToldTurn {
    pub turn_id: TurnId,
    pub organization: String,
    pub agent: String,
    /// The trace that it belongs to.
    pub traceparent: Option<String>,
}

/// What happened. Times are by the database's clock, in seconds.
#[derive(Debug, Clone)]
pub enum TurnEvent {
    /// It was accepted.
    Armed(ToldTurn),
    /// A worker took it, so long after it was accepted.
    Claimed(ToldTurn, f64),
    /// Its first output became durable, so long after it was accepted.
    BegunOutput(ToldTurn, f64),
    /// It has its terminal, so long after it was accepted.
    Ended {
        turn: ToldTurn,
        after: f64,
        /// Why there is no reply, and the detail for operators; `None`: it has a reply.
        failure: Option<(Reason, Option<String>)>,
    },
    /// Its terminal was first shown on this platform, so long after it was accepted, and after it was written.
    Shown { turn: ToldTurn, platform: String, after: f64, after_end: f64 },
    /// A worker connected, so long after its start was decided.
    WorkerStarted { organization: String, agent: String, after: f64 },
}

impl TurnEvent {
    /// Tells it.
    pub fn tell(self) {
        match self {
            TurnEvent::Armed(turn) => METRICS.turns_armed.with_label_values(&[turn.label()]).inc(),
            TurnEvent::Claimed(turn, after) => {
                let agent = turn.label();
                METRICS.turns_claimed.with_label_values(&[&agent]).inc();
                METRICS.claim_seconds.with_label_values(&[&agent]).observe(after);
                turn.step(TurnStep::Claim, after, None);
            }
            TurnEvent::BegunOutput(turn, after) => {
                METRICS.first_output_seconds.with_label_values(&[turn.label()]).observe(after);
            }
            TurnEvent::Ended { turn, after, failure } => turn.ended(after, failure),
            TurnEvent::Shown { turn, platform, after, after_end } => {
                METRICS.turns_shown.with_label_values(&[platform_label(&platform)]).inc();
                METRICS.shown_seconds.with_label_values(&[turn.label()]).observe(after);
                turn.step(TurnStep::Deliver, after_end, None);
            }
            TurnEvent::WorkerStarted { organization, agent, after } => {
                let agent = METRICS.agent(&organization, &agent);
                METRICS.worker_start_seconds.with_label_values(&[agent]).observe(after);
            }
        }
    }
}

impl ToldTurn {
    fn label(&self) -> String {
        METRICS.agent(&self.organization, &self.agent)
    }

    fn step(&self, what: TurnStep, seconds: f64, failed: Option<Reason>) {
        step(what, self.traceparent.as_deref(), seconds, |span| {
            span.says("lastword.turn.id", self.turn_id);
            span.says("lastword.agent", format_args!("{}/{}", self.organization, self.agent));
            if let Some(reason) = failed {
                span.says("lastword.reason", reason);
                span.failed(reason.as_str());
            }
        });
    }

    fn ended(&self, after: f64, failure: Option<(Reason, Option<String>)>) {
        let label = self.label();
        let (reason, outcome) =
            failure.as_ref().map_or(("Succeeded", "reply"), |(reason, _)| (reason.as_str(), "error"));
        METRICS.turns_ended.with_label_values(&[label.as_str(), reason]).inc();
        METRICS.terminal_seconds.with_label_values(&[label.as_str(), outcome]).observe(after);
        self.step(TurnStep::Finish, after, failure.as_ref().map(|(reason, _)| *reason));
        let (turn, agent) = (self.turn_id, format!("{}/{}", self.organization, self.agent));
        match failure {
            None => tracing::debug!(%turn, agent, after, "turn {turn} of {agent} has its reply"),
            // Somebody wanted it so.
            Some((Reason::Cancelled, _)) => tracing::info!(%turn, agent, after, "turn {turn} of {agent} was cancelled"),
            Some((reason, detail)) => {
                // The end of a program's stderr may have many lines; the log has one.
                let detail = detail.unwrap_or_default();
                let line: Vec<&str> = detail.split(char::is_control).filter(|part| !part.is_empty()).collect();
                let (colon, line) = (if line.is_empty() { "" } else { ": " }, line.join("; "));
                tracing::warn!(%turn, agent, %reason, detail, after, "turn {turn} of {agent} failed: {reason}{colon}{line}");
            }
        }
    }
}

/// Platforms have names that Agents' authors choose; all but our own count as one.
fn platform_label(name: &str) -> &'static str {
    match name {
        "api" => "api",
        "kubernetes" => "kubernetes",
        _ => "other",
    }
}
