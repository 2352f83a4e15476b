//! Guardrails as a service: one POST asks for one decision.
//!
//! The request is JSON, `{turnId, messageId, conversation, user, agent, organization, message}`; its header `webhook-id` is
//! the turn's id, the same however often the turn is guarded. The answer is 2xx with JSON `{allow: bool, message?: string}`.
//! Anything else is no decision: the guardrail is broken.

use std::io;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::evaluators::PATIENCE;
use super::guardrail::{GuardrailAnswer, GuardrailProblem, Input};
use super::places::Place;
use super::services::Services;
use crate::crd::{SecretKeyRef, Webhook};
use crate::egress::{explain, refusal};
use crate::turn::objects::objects_only;

/// The largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest message of a service that a client is shown, in characters; a longer one is cut.
const MAX_CLIENT_MESSAGE: usize = 512;

/// The pause after a question that was not asked for want of something here.
const RETRY: Duration = Duration::from_millis(500);

/// Why a service gave no decision.
enum NoDecision {
    /// It, or its URL, does not work.
    Broken(String),
    /// This process could not ask it.
    Lacking(String),
}

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

    /// Asks the service. What Lastword lacks is waited for, for [`PATIENCE`].
    pub(super) async fn ask(&self, services: &Services, input: Input<'_>) -> GuardrailAnswer {
        let mut lack = "no place for the question was free".to_owned();
        let asking = async {
            loop {
                let place = services.places.take(input.organization).await;
                match self.ask_now(services, input, &place).await {
                    Err(NoDecision::Lacking(cause)) => lack = cause,
                    answered => return answered,
                }
                drop(place);
                tokio::time::sleep(RETRY).await;
            }
        };
        // The service has its time once a place was found, however long that took.
        match tokio::time::timeout(PATIENCE + self.timeout, asking).await {
            Ok(Ok(Decision { allow: true, .. })) => GuardrailAnswer::Allow,
            Ok(Ok(Decision { message, .. })) => GuardrailAnswer::Reject(message.and_then(presentable)),
            Ok(Err(NoDecision::Broken(cause))) => GuardrailAnswer::Broken(cause),
            Ok(Err(NoDecision::Lacking(cause))) => GuardrailAnswer::Lacking(cause),
            Err(_) => GuardrailAnswer::Lacking(format!("{lack} within {PATIENCE:?}")),
        }
    }

    async fn ask_now(&self, services: &Services, input: Input<'_>, _: &Place) -> Result<Decision, NoDecision> {
        // A Secret that takes its time is not the service's doing; reading one has a limit of its own.
        let url = self.url(services, input.organization).await?;
        let answer = tokio::time::timeout(self.timeout, exchange(services, &url, input)).await;
        answer.unwrap_or_else(|_| Err(NoDecision::Broken(format!("no answer within {:?}", self.timeout))))
    }

    async fn url(&self, services: &Services, namespace: &str) -> Result<Url, NoDecision> {
        match &self.url {
            UrlSource::Url(url) => Ok(url.clone()),
            UrlSource::Secret(secret) => {
                let read = services.secrets.get(namespace, secret).await;
                // That the API server does not answer is not the author's doing.
                let value = read.map_err(|error| match error.passing {
                    true => NoDecision::Lacking(error.to_string()),
                    false => NoDecision::Broken(error.to_string()),
                })?;
                let url = value.as_deref().and_then(parse);
                url.ok_or(NoDecision::Broken("its Secret is missing or holds no http or https URL".into()))
            }
        }
    }
}

fn parse(url: &str) -> Option<Url> {
    Url::parse(url.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

async fn exchange(services: &Services, url: &Url, input: Input<'_>) -> Result<Decision, NoDecision> {
    let body = GuardRequest {
        turn_id: input.turn_id,
        message_id: input.message_id,
        conversation: input.conversation,
        user: input.user,
        agent: input.agent,
        organization: input.organization,
        message: input.message,
    };
    let broken = NoDecision::Broken;
    let request = services.outbound.post(url, input.organization).map_err(|why| broken(why.to_string()))?;
    let request = request.header("webhook-id", input.turn_id).json(&body);
    let mut response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(broken(format!("it answered {}", response.status())));
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(broken(format!("its answer is larger than {MAX_ANSWER_BYTES} bytes")));
        }
        answer.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&answer)
        .map_err(|error| broken(format!("its answer is not {{allow: bool, message?: string}}: {error}")))
}

/// Whose doing it is that a request failed.
fn failed(error: reqwest::Error) -> NoDecision {
    if let Some(refused) = refusal(&error) {
        return NoDecision::Broken(refused.to_string());
    }
    if is_our_lack(&error) { NoDecision::Lacking(explain(error)) } else { NoDecision::Broken(explain(error)) }
}

/// Whether a request failed since this process or machine has no descriptors, ports or memory left.
fn is_our_lack(error: &reqwest::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if number.is_some_and(|number| ours.contains(&number)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A service's message in the form in which a client is shown it: one line, cut if it is too long. `None` if nothing is
/// left of it.
fn presentable(message: String) -> Option<String> {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CLIENT_MESSAGE).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

objects_only!(read Decision);
