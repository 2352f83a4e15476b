//! The rails of one Agent: compiled once, asked for every message.

use std::sync::Arc;

use super::cel::Expression;
use super::rail::{Input, RailAnswer, RailProblem, Services};
use super::webhook::GuardWebhook;
use crate::crd::{FailurePolicy, Guardrail, Guardrails};
use crate::turn::reason::Reason;

/// The largest message that is checked, in bytes; a larger one is rejected, if there is any rail.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// What the client is told if a rail was broken under `failurePolicy: Fail`.
pub const NOT_CHECKED: &str = "The input could not be checked. Please try again later.";

/// What the rails say of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardVerdict {
    /// The agent may see the message.
    Allow,
    /// The turn ends with [`Reason::GuardrailRejected`].
    Reject {
        /// For the client. It comes from the Agent's author, from the webhook, or from Lastword, and tells no internals.
        message: String,
        /// For operators: which rail, and why.
        detail: String,
    },
}

/// A rail that can never work, whatever the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guardrail {index}: {problem}")]
pub struct CompileError {
    /// The rail's index in `spec.guardrails.input`.
    pub index: usize,
    /// What is wrong with it.
    pub problem: RailProblem,
}

/// The compiled rails of one Agent. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    rails: Arc<[Rail]>,
}

#[derive(Debug)]
struct Rail {
    check: RailCheck,
    message: Option<String>,
    policy: FailurePolicy,
}

#[derive(Debug)]
enum RailCheck {
    Cel(Expression),
    Webhook(GuardWebhook),
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

    /// Whether the Agent has no rails: its turns are armed as claimable at once.
    pub fn is_empty(&self) -> bool {
        self.rails.is_empty()
    }

    /// Asks the rails in order. It takes at most the sum of their timeouts (CEL 1 s; webhook 5 s, at most 30 s).
    pub async fn check(&self, services: &Services, input: Input<'_>) -> GuardVerdict {
        if !self.rails.is_empty() && input.message.len() > MAX_MESSAGE_BYTES {
            let detail = format!("message of {} bytes is larger than {MAX_MESSAGE_BYTES}", input.message.len());
            return GuardVerdict::Reject { message: "The message is too long.".into(), detail };
        }
        for (index, rail) in self.rails.iter().enumerate() {
            let (kind, answer) = match &rail.check {
                RailCheck::Cel(expression) => ("cel", expression.ask(input).await),
                RailCheck::Webhook(service) => ("webhook", service.ask(services, input).await),
            };
            match (answer, rail.policy) {
                (RailAnswer::Allow, _) => {}
                (RailAnswer::Reject(own), _) => {
                    let message = own.or_else(|| rail.message.clone());
                    let message = message.unwrap_or_else(|| Reason::GuardrailRejected.client_message().into());
                    return GuardVerdict::Reject { message, detail: format!("rejected by guardrail {index} ({kind})") };
                }
                (RailAnswer::Broken(cause), FailurePolicy::Ignore) => {
                    let (turn, agent) = (input.turn_id, input.agent);
                    tracing::warn!(turn, agent, "guardrail {index} ({kind}) of {agent} is ignored: {cause}");
                }
                (RailAnswer::Broken(cause), FailurePolicy::Fail) => {
                    let detail = format!("guardrail {index} ({kind}) could not decide: {cause}");
                    return GuardVerdict::Reject { message: NOT_CHECKED.into(), detail };
                }
            }
        }
        GuardVerdict::Allow
    }
}

fn compile_rail(rail: &Guardrail) -> Result<Rail, RailProblem> {
    let check = match (&rail.cel, &rail.webhook) {
        (Some(source), None) => RailCheck::Cel(Expression::compile(source).map_err(RailProblem::Cel)?),
        (None, Some(webhook)) => RailCheck::Webhook(GuardWebhook::new(webhook)?),
        _ => return Err(RailProblem::Kind),
    };
    Ok(Rail { check, message: rail.message.clone(), policy: rail.failure_policy })
}
