//! Guardrails as a service: one POST, one decision.
//!
//! Request: JSON `{turnId, messageId, conversation, user, agent, organization, message}`, header `webhook-id` = the turn's
//! id, the same however often the turn is guarded. Answer: 2xx with JSON `{allow: bool, message?: string}`. All else is
//! no decision: the rail is broken.

use std::time::Duration;

use reqwest::{Client, Url, redirect};
use serde::{Deserialize, Serialize};

use super::{Answer, Input, Problem};
use crate::crd::{SecretKeyRef, Webhook};

/// The largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest message of a service that is passed on to a client, in characters.
const MAX_CLIENT_MESSAGE: usize = 512;

/// A client as [`Guards::check`](super::Guards::check) needs it: no redirects. The process must have installed a rustls
/// provider before.
///
/// # Errors
/// If the TLS backend cannot be initialised.
pub fn http_client() -> Result<Client, reqwest::Error> {
    Client::builder().redirect(redirect::Policy::none()).build()
}

/// A service that decides on messages.
#[derive(Debug)]
pub(super) struct Service {
    /// None while the Secret that holds it is unknown.
    url: Option<Url>,
    timeout: Duration,
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
    pub(super) fn new(webhook: &Webhook, resolve: impl Fn(&SecretKeyRef) -> Option<String>) -> Result<Self, Problem> {
        let url = match (&webhook.url, &webhook.url_secret_ref) {
            (Some(url), None) => Some(parse(url).ok_or(Problem::Url)?),
            // A Secret with a bad URL may be corrected any time: broken, not impossible.
            (None, Some(secret)) => resolve(secret).as_deref().and_then(parse),
            _ => return Err(Problem::UrlSource),
        };
        Ok(Self { url, timeout: webhook.timeout() })
    }

    pub(super) async fn ask(&self, client: &Client, input: Input<'_>) -> Answer {
        let Some(url) = &self.url else {
            return Answer::Broken("its Secret is missing or holds no http or https URL".into());
        };
        match tokio::time::timeout(self.timeout, exchange(client, url, input)).await {
            Ok(Ok(Decision { allow: true, .. })) => Answer::Allow,
            Ok(Ok(Decision { message, .. })) => Answer::Reject(message.and_then(presentable)),
            Ok(Err(cause)) => Answer::Broken(cause),
            Err(_) => Answer::Broken(format!("no answer within {:?}", self.timeout)),
        }
    }
}

fn parse(url: &str) -> Option<Url> {
    Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

async fn exchange(client: &Client, url: &Url, input: Input<'_>) -> Result<Decision, String> {
    let question = Question {
        turn_id: input.turn_id,
        message_id: input.message_id,
        conversation: input.conversation,
        user: input.user,
        agent: input.agent,
        organization: input.organization,
        message: input.message,
    };
    let request = client.post(url.clone()).header("webhook-id", input.turn_id).json(&question);
    let mut response = request.send().await.map_err(explain)?;
    if response.url() != url {
        return Err("it redirected, and the client followed".into());
    }
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

/// An error with its causes, without the URL: that may be a secret.
fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A service's message as a client may see it: one bounded line, or none.
fn presentable(message: String) -> Option<String> {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CLIENT_MESSAGE).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
