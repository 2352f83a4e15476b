//! Input guardrails: what a message must pass before the agent sees it.
//!
//! Rails are asked in order, and the first rejection wins. A rail that cannot decide (expression fails at run time or
//! takes too long; service down, slow, or answering something else) is *broken*, and its `failurePolicy` decides: `Fail`
//! (the default) rejects, `Ignore` goes on with the next rail. Nothing else ever lets a message through unchecked: a
//! guard that panics, a URL whose Secret is missing, and a message too large to check all count as broken or rejected.
//!
//! No verdict is remembered here: whoever guards a turn again (its first guard died) asks again, and webhooks recognise
//! that by the constant `webhook-id`.

mod cel;
mod webhook;

use std::sync::Arc;

use serde_json::Value;

use crate::crd::{FailurePolicy, Guardrail, Guardrails};
use crate::egress::Outbound;
use crate::secrets::Secrets;
use crate::turn::reason::Reason;

/// The largest message that is checked, in bytes; a larger one is rejected, if there is any rail.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What the client is told if a check was broken under `failurePolicy: Fail`.
pub const NOT_CHECKED: &str = "The input could not be checked. Please try again later.";

/// What rails may ask: services that they can reach, whose URLs may be in Secrets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Services {
    /// With [`Reach::Cluster`](crate::egress::Reach::Cluster).
    pub outbound: Outbound,
    pub secrets: Arc<dyn Secrets>,
}

/// A turn's message and where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The tenant.
    pub organization: &'a str,
    /// The conversation's name.
    pub conversation: &'a str,
    /// Who sent the message.
    pub user: &'a str,
    /// The agent's name.
    pub agent: &'a str,
    /// Where its reply will be shown.
    pub platform: &'a str,
    /// The client's id of the message.
    pub message_id: &'a str,
    /// Our id of the turn; the webhook's idempotency key.
    pub turn_id: &'a str,
    /// The text to check.
    pub message: &'a str,
    /// What the client told of its platform; the CEL variable `metadata`.
    pub platform_metadata: &'a Value,
}

/// What the rails say of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The agent may see it.
    Allow,
    /// It ends the turn as [`Reason::GuardrailRejected`].
    Reject {
        /// For the client; it comes from the Agent's author, the webhook, or us, and has no internals.
        message: String,
        /// For operators: which rail, and why.
        detail: String,
    },
}

/// What one rail says.
enum Answer {
    Allow,
    /// With the webhook's own message for the client.
    Reject(Option<String>),
    /// It could not decide; with the cause, for operators.
    Broken(String),
}

/// A rail that can never work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guardrail {index}: {problem}")]
pub struct CompileError {
    /// Its index in `spec.guardrails.input`.
    pub index: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a rail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither or both of the two kinds.
    #[error("set exactly one of cel and webhook")]
    Kind,
    /// The CEL expression does not compile, or is refused for its names or size.
    #[error("cel: {0}")]
    Cel(String),
    /// Not an http(s) URL.
    #[error("webhook.url: must be an http or https URL")]
    Url,
    /// Neither or both sources of the URL.
    #[error("webhook: set exactly one of url and urlSecretRef")]
    UrlSource,
}

/// The compiled rails of one Agent; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    rails: Arc<[Rail]>,
}

#[derive(Debug)]
struct Rail {
    check: Check,
    message: Option<String>,
    policy: FailurePolicy,
}

#[derive(Debug)]
enum Check {
    Cel(cel::Expression),
    Webhook(webhook::Service),
}

impl Guards {
    /// Compiles the rails of an Agent.
    ///
    /// # Errors
    /// The first rail that can never work.
    pub fn compile(guardrails: &Guardrails) -> Result<Self, CompileError> {
        let compile = |(index, rail)| compile_rail(rail).map_err(|problem| CompileError { index, problem });
        let rails = guardrails.input.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { rails })
    }

    /// Whether there is nothing to check: such an Agent's turns are armed as claimable at once.
    pub fn is_empty(&self) -> bool {
        self.rails.is_empty()
    }

    /// Asks the rails in order. It takes at most the sum of their timeouts (CEL 1 s; webhook 5 s, at most 30 s).
    pub async fn check(&self, services: &Services, input: Input<'_>) -> Verdict {
        if !self.rails.is_empty() && input.message.len() > MAX_MESSAGE_BYTES {
            let detail = format!("message of {} bytes is larger than {MAX_MESSAGE_BYTES}", input.message.len());
            return Verdict::Reject { message: "The message is too long.".into(), detail };
        }
        for (index, rail) in self.rails.iter().enumerate() {
            let (kind, answer) = match &rail.check {
                Check::Cel(expression) => ("cel", expression.ask(input).await),
                Check::Webhook(service) => ("webhook", service.ask(services, input).await),
            };
            match (answer, rail.policy) {
                (Answer::Allow, _) => {}
                (Answer::Reject(own), _) => {
                    let message = own.or_else(|| rail.message.clone());
                    let message = message.unwrap_or_else(|| Reason::GuardrailRejected.client_message().into());
                    return Verdict::Reject { message, detail: format!("rejected by guardrail {index} ({kind})") };
                }
                (Answer::Broken(cause), FailurePolicy::Ignore) => {
                    let (turn, agent) = (input.turn_id, input.agent);
                    tracing::warn!(turn, agent, "guardrail {index} ({kind}) of {agent} is ignored: {cause}");
                }
                (Answer::Broken(cause), FailurePolicy::Fail) => {
                    let detail = format!("guardrail {index} ({kind}) could not decide: {cause}");
                    return Verdict::Reject { message: NOT_CHECKED.into(), detail };
                }
            }
        }
        Verdict::Allow
    }
}

fn compile_rail(rail: &Guardrail) -> Result<Rail, Problem> {
    let check = match (&rail.cel, &rail.webhook) {
        (Some(source), None) => Check::Cel(cel::Expression::compile(source).map_err(Problem::Cel)?),
        (None, Some(webhook)) => Check::Webhook(webhook::Service::new(webhook)?),
        _ => return Err(Problem::Kind),
    };
    Ok(Rail { check, message: rail.message.clone(), policy: rail.failure_policy })
}

#[cfg(test)]
mod tests;
