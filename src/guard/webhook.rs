//! Guardrails as a service: one POST asks for one decision.
//!
//! The request is JSON, `{turnId, messageId, conversation, user, agent, organization, message}`; its header `webhook-id` is
//! the turn's id, the same however often the turn is guarded. The answer is 2xx with JSON `{allow: bool, message?: string}`.
//! Anything else is no decision: the guardrail is broken.

use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::guardrail::{GuardrailAnswer, GuardrailProblem, Input, Services};
use crate::crd::{SecretKeyRef, Webhook};
use crate::egress::{explain, refusal};
use crate::turn::objects::objects_only;

/// The largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest message of a service that a client is shown, in characters; a longer one is cut.
const MAX_CLIENT_MESSAGE: usize = 512;

/// A service that decides on messages.
#[derive(Debug)]
pub(super) struct GuardWebhook {
    url: UrlSource,
    timeout: Duration,
}

#[derive(Debug)]
enum UrlSource {
    Url(Url),
    /// The Secret is read for every request.
    Secret(SecretKeyRef),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardRequest<'a> {
    turn_id: &'a str,
    message_id: &'a str,
    conversation: &'a str,
    user: &'a str,
    agent: &'a str,
    organization: &'a str,
    message: &'a str,
}

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Decision {
    allow: bool,
    message: Option<String>,
}

impl GuardWebhook {
    pub(super) fn new(webhook: &Webhook) -> Result<Self, GuardrailProblem> {
        let url = match (&webhook.url, &webhook.url_secret_ref) {
            (Some(url), None) => UrlSource::Url(parse(url).ok_or(GuardrailProblem::Url)?),
            (None, Some(secret)) => UrlSource::Secret(secret.clone()),
            _ => return Err(GuardrailProblem::UrlSource),
        };
        Ok(Self { url, timeout: webhook.timeout() })
    }

    pub(super) async fn ask(&self, services: &Services, input: Input<'_>) -> GuardrailAnswer {
        let asking = async { exchange(services, &self.url(services, input.organization).await?, input).await };
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(Ok(Decision { allow: true, .. })) => GuardrailAnswer::Allow,
            Ok(Ok(Decision { message, .. })) => GuardrailAnswer::Reject(message.and_then(presentable)),
            Ok(Err(cause)) => GuardrailAnswer::Broken(cause),
            Err(_) => GuardrailAnswer::Broken(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn url(&self, services: &Services, namespace: &str) -> Result<Url, String> {
        match &self.url {
            UrlSource::Url(url) => Ok(url.clone()),
            UrlSource::Secret(secret) => {
                let value = services.secrets.get(namespace, secret).await.map_err(|e| e.to_string())?;
                value.as_deref().and_then(parse).ok_or("its Secret is missing or holds no http or https URL".into())
            }
        }
    }
}

fn parse(url: &str) -> Option<Url> {
    Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

async fn exchange(services: &Services, url: &Url, input: Input<'_>) -> Result<Decision, String> {
    let body = GuardRequest {
        turn_id: input.turn_id,
        message_id: input.message_id,
        conversation: input.conversation,
        user: input.user,
        agent: input.agent,
        organization: input.organization,
        message: input.message,
    };
    let request = services.outbound.post(url).map_err(|why| why.to_string())?;
    let request = request.header("webhook-id", input.turn_id).json(&body);
    let mut response = request.send().await.map_err(|e| refusal(&e).map_or_else(|| explain(e), |w| w.to_string()))?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(explain)? {
        if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("its answer is larger than {MAX_ANSWER_BYTES} bytes"));
        }
        answer.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&answer)
        .map_err(|error| format!("its answer is not {{allow: bool, message?: string}}: {error}"))
}

/// A service's message in the form in which a client is shown it: one line, cut if it is too long. `None` if nothing is
/// left of it.
fn presentable(message: String) -> Option<String> {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CLIENT_MESSAGE).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

objects_only!(read Decision);
