//! Guardrails as a service: one POST, one decision.
//!
//! Request: JSON `{turnId, messageId, conversation, user, agent, organization, message}`, header `webhook-id` = the turn's
//! id, the same however often the turn is guarded. Answer: 2xx with JSON `{allow: bool, message?: string}`. All else is
//! no decision: the rail is broken.

use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{Answer, Input, Problem, Services};
use crate::crd::{SecretKeyRef, Webhook};
use crate::egress::{explain, refusal};

/// The largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest message of a service that is passed on to a client, in characters.
const MAX_CLIENT_MESSAGE: usize = 512;

/// A service that decides on messages.
#[derive(Debug)]
pub(super) struct Service {
    url: Source,
    timeout: Duration,
}

#[derive(Debug)]
enum Source {
    Url(Url),
    /// Read for every question.
    Secret(SecretKeyRef),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    turn_id: &'a str,
    message_id: &'a str,
    conversation: &'a str,
    user: &'a str,
    agent: &'a str,
    organization: &'a str,
    message: &'a str,
}

#[derive(Deserialize)]
struct Decision {
    allow: bool,
    message: Option<String>,
}

impl Service {
    pub(super) fn new(webhook: &Webhook) -> Result<Self, Problem> {
        let url = match (&webhook.url, &webhook.url_secret_ref) {
            (Some(url), None) => Source::Url(parse(url).ok_or(Problem::Url)?),
            (None, Some(secret)) => Source::Secret(secret.clone()),
            _ => return Err(Problem::UrlSource),
        };
        Ok(Self { url, timeout: webhook.timeout() })
    }

    pub(super) async fn ask(&self, services: &Services, input: Input<'_>) -> Answer {
        let asking = async { exchange(services, &self.url(services, input.organization).await?, input).await };
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(Ok(Decision { allow: true, .. })) => Answer::Allow,
            Ok(Ok(Decision { message, .. })) => Answer::Reject(message.and_then(presentable)),
            Ok(Err(cause)) => Answer::Broken(cause),
            Err(_) => Answer::Broken(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn url(&self, services: &Services, namespace: &str) -> Result<Url, String> {
        match &self.url {
            Source::Url(url) => Ok(url.clone()),
            Source::Secret(secret) => {
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
    let question = Question {
        turn_id: input.turn_id,
        message_id: input.message_id,
        conversation: input.conversation,
        user: input.user,
        agent: input.agent,
        organization: input.organization,
        message: input.message,
    };
    let request = services.outbound.post(url).map_err(|why| why.to_string())?;
    let request = request.header("webhook-id", input.turn_id).json(&question);
    let mut response = request.send().await.map_err(|e| refusal(&e).map_or_else(|| explain(e), |w| w.to_string()))?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(explain)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("its answer is larger than {MAX_ANSWER_BYTES} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body)
        .map_err(|error| format!("its answer is not {{allow: bool, message?: string}}: {error}"))
}

/// A service's message as a client may see it: one bounded line, or none.
fn presentable(message: String) -> Option<String> {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CLIENT_MESSAGE).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
