//! The guardrails of one Agent: compiled once, asked for every message.

use std::sync::Arc;

use super::cel::{self, Question};
use super::guardrail::{GuardrailAnswer, GuardrailProblem, Input};
use super::services::Services;
use super::webhook::GuardWebhook;
use crate::crd::{FailurePolicy, Guardrail, Guardrails};
use crate::turn::reason::Reason;

/// The largest message that is checked, in bytes; a larger one is rejected, if there is any guardrail.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What the client is told if a guardrail could not be asked (timeout, error) under `failurePolicy: Fail`.
pub const NOT_CHECKED: &str = "The input could not be checked. Please try again later.";

/// What the guardrails say of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardVerdict {
    /// The agent may see the message.
    Allow,
    /// The turn ends with [`Reason::GuardrailRejected`].
    Reject {
        /// What the client is told. It comes from the Agent's author, from the webhook, or from Lastword, and tells no
        /// internals.
        message: String,
        /// Which guardrail rejected the message, and why. Only operators are shown it.
        detail: String,
    },
    /// A guardrail could not be asked for want of something that Lastword owes: a place, memory, a Secret that could not be
    /// read. No policy of the Agent decides this; the turn ends with [`Reason::Internal`].
    NotAsked {
        /// Which guardrail, and what was lacking. Only operators are shown it.
        detail: String,
    },
}

/// A guardrail that can never work, whatever the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guardrail {index}: {problem}")]
pub struct CompileError {
    /// The guardrail's index in `spec.guardrails.input`.
    pub index: usize,
    /// What is wrong with it.
    pub problem: GuardrailProblem,
}

/// The compiled guardrails of one Agent. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    guardrails: Arc<[CompiledGuardrail]>,
}

#[derive(Debug)]
struct CompiledGuardrail {
    check: GuardrailCheck,
    message: Option<String>,
    policy: FailurePolicy,
}

#[derive(Debug)]
enum GuardrailCheck {
    /// The expression. It was compiled once, and is again in the process that evaluates it.
    Cel(String),
    Webhook(GuardWebhook),
}

impl Guards {
    /// Compiles the guardrails of an Agent.
    ///
    /// # Errors
    /// The first guardrail that can never work.
    pub fn compile(guardrails: &Guardrails) -> Result<Self, CompileError> {
        let compile =
            |(index, guardrail)| compile_guardrail(guardrail).map_err(|problem| CompileError { index, problem });
        let guardrails = guardrails.input.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { guardrails })
    }

    /// Whether the Agent has no guardrails: its turns are armed as claimable at once.
    pub fn is_empty(&self) -> bool {
        self.guardrails.is_empty()
    }

    /// Asks the guardrails in order. It takes at most the sum of their times: a webhook's `timeoutSeconds`, 5 s by default and
    /// 30 s at most; for either kind the time of waiting for what Lastword lacks, 30 s
    /// ([`PATIENCE`](super::evaluators::PATIENCE)).
    pub async fn check(&self, services: &Services, input: Input<'_>) -> GuardVerdict {
        if !self.guardrails.is_empty() && input.message.len() > MAX_MESSAGE_BYTES {
            let detail = format!("message of {} bytes is larger than {MAX_MESSAGE_BYTES}", input.message.len());
            return GuardVerdict::Reject { message: "The message is too long.".into(), detail };
        }
        for (index, guardrail) in self.guardrails.iter().enumerate() {
            let (kind, answer) = match &guardrail.check {
                GuardrailCheck::Cel(expression) => {
                    ("cel", services.evaluators.ask(input.organization, &question(expression, input)).await)
                }
                GuardrailCheck::Webhook(service) => ("webhook", service.ask(services, input).await),
            };
            match (answer, guardrail.policy) {
                (GuardrailAnswer::Allow, _) => {}
                (GuardrailAnswer::Reject(own), _) => {
                    let message = own.or_else(|| guardrail.message.clone());
                    let message = message.unwrap_or_else(|| Reason::GuardrailRejected.client_message().into());
                    return GuardVerdict::Reject { message, detail: format!("rejected by guardrail {index} ({kind})") };
                }
                (GuardrailAnswer::Lacking(cause), _) => {
                    return GuardVerdict::NotAsked {
                        detail: format!("guardrail {index} ({kind}) was not asked: {cause}"),
                    };
                }
                (GuardrailAnswer::Broken(cause), FailurePolicy::Ignore) => {
                    let (turn, agent) = (input.turn_id, input.agent);
                    tracing::warn!(turn, agent, "guardrail {index} ({kind}) of {agent} is ignored: {cause}");
                }
                (GuardrailAnswer::Broken(cause), FailurePolicy::Fail) => {
                    let detail = format!("guardrail {index} ({kind}) could not decide: {cause}");
                    return GuardVerdict::Reject { message: NOT_CHECKED.into(), detail };
                }
            }
        }
        GuardVerdict::Allow
    }
}

/// An expression with what it may look at.
fn question(expression: &str, input: Input<'_>) -> Question {
    Question {
        source: expression.to_owned(),
        message: input.message.to_owned(),
        user: input.user.to_owned(),
        conversation: input.conversation.to_owned(),
        platform: input.platform.to_owned(),
        metadata: input.platform_metadata.to_string(),
    }
}

fn compile_guardrail(guardrail: &Guardrail) -> Result<CompiledGuardrail, GuardrailProblem> {
    let check = match (&guardrail.cel, &guardrail.webhook) {
        (Some(source), None) => {
            cel::compile(source).map_err(GuardrailProblem::Cel)?;
            GuardrailCheck::Cel(source.clone())
        }
        (None, Some(webhook)) => GuardrailCheck::Webhook(GuardWebhook::new(webhook)?),
        _ => return Err(GuardrailProblem::Kind),
    };
    Ok(CompiledGuardrail { check, message: guardrail.message.clone(), policy: guardrail.failure_policy })
}
