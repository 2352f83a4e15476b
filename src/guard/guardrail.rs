//! What one guardrail is given, what it answers, and what can be wrong with it.

use serde_json::Value;

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
    /// The platform on which its reply is shown.
    pub platform: &'a str,
    /// The id that the client gave to the message.
    pub message_id: &'a str,
    /// The turn's id; a webhook's idempotency key.
    pub turn_id: &'a str,
    /// The text to check.
    pub message: &'a str,
    /// What the client said about its platform; the CEL variable `metadata`.
    pub platform_metadata: &'a Value,
}

/// What one guardrail says of a message.
pub(super) enum GuardrailAnswer {
    Allow,
    /// The agent may not see the message; with the webhook's own message for the client, if it gave one.
    Reject(Option<String>),
    /// The guardrail could not decide. The cause is for operators.
    Broken(String),
    /// The guardrail was not asked, since Lastword lacks something. What, is for operators.
    Lacking(String),
}

/// What is wrong with a guardrail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardrailProblem {
    /// Neither `cel` nor `webhook` is set, or both are.
    #[error("set exactly one of cel and webhook")]
    Kind,
    /// The CEL expression does not compile, or is refused for its names or size.
    #[error("cel: {0}")]
    Cel(String),
    /// The URL is not one of http or https.
    #[error("webhook.url: must be an http or https URL")]
    Url,
    /// The URL has neither of its two sources, or both.
    #[error("webhook: set exactly one of url and urlSecretRef")]
    UrlSource,
}
