//! One attempt to post one terminal.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, Response, Url};
use time::OffsetDateTime;

use super::decide::{NextAttempt, PostOutcome, judge, next, retry_after};
use super::{slack, webhook};
use crate::crd::{AgentSpec, Platform, SecretKeyRef};
use crate::egress::{self, Outbound};
use crate::secrets::Secrets;
use crate::store::{DuePost, Record, Store, StoreError};

/// A receiver must have answered within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest that a whole attempt takes, the reading of what it needs included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(40);
/// The pause before an outcome is written again after the database failed.
const RETRY: Duration = Duration::from_millis(500);
/// So often the writing of an outcome is tried, which takes less time than the row's claim lasts.
const MAX_WRITES: u32 = 10;
/// So much of an answer is read at the most, in bytes. Nobody looks at it, but a connection whose answer was not read to its
/// end cannot be used again.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Makes attempts. Cheap to clone.
#[derive(Clone)]
pub(super) struct Poster {
    pub store: Store,
    pub secrets: Arc<dyn Secrets>,
    pub outbound: Outbound,
}

impl Poster {
    /// Makes one attempt and writes what follows from it.
    pub async fn post(&self, post: DuePost) {
        let outcome = match tokio::time::timeout(ATTEMPT_TIMEOUT, self.attempt(&post)).await {
            Ok(Ok(outcome)) => outcome,
            // The claim of the row runs out, and somebody takes it again.
            Ok(Err(error)) => return tracing::debug!(%error, "turn {} is posted later", post.turn_id),
            Err(_) => PostOutcome::Failed { problem: format!("not done within {ATTEMPT_TIMEOUT:?}"), asked: None },
        };
        let (turn, platform, attempts) = (post.turn_id, post.platform.as_str(), post.attempts);
        let next = next(outcome, attempts, rand::random());
        match &next {
            NextAttempt::Remove => tracing::debug!(%turn, platform, attempts, "turn {turn} is posted"),
            NextAttempt::Later { problem, seconds } => {
                tracing::info!(%turn, platform, attempts, "turn {turn} is posted again in {seconds:.0} s: {problem}");
            }
            NextAttempt::GiveUp { problem } => {
                tracing::error!(%turn, platform, attempts, "turn {turn} is not posted, given up: {problem}");
            }
        }
        for _ in 0..MAX_WRITES {
            match self.write(&post, &next).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the outcome of posting turn {turn} is not written yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn write(&self, post: &DuePost, next: &NextAttempt) -> Result<(), StoreError> {
        match next {
            NextAttempt::Remove => self.store.remove_deliveries(&post.platform, &[post.turn_id]).await,
            NextAttempt::Later { seconds, problem } => self.store.put_off_post(post, *seconds, problem).await,
            NextAttempt::GiveUp { problem } => self.store.give_up_post(post, problem).await,
        }
    }

    async fn attempt(&self, post: &DuePost) -> Result<PostOutcome, StoreError> {
        // The turn was erased, or removed by the retention: there is nothing to post any more.
        let Some(record) = self.store.turn_record(post.turn_id).await? else { return Ok(PostOutcome::Done) };
        let Some(spec) = self.store.agent_spec(&post.organization, &record.agent).await? else {
            // It is tried again for a while, since many people replace an object by deleting it and making it again.
            return Ok(PostOutcome::Refused { problem: format!("there is no Agent {} any more", record.agent) });
        };
        let Ok(spec) = serde_json::from_value::<AgentSpec>(spec) else {
            return Ok(PostOutcome::Failed {
                problem: format!("the Agent {} cannot be read", record.agent),
                asked: None,
            });
        };
        let Some(platform) = spec.platforms.into_iter().find(|p| p.name == post.platform) else {
            let problem = format!("the Agent {} has no platform {} any more", record.agent, post.platform);
            return Ok(PostOutcome::Refused { problem });
        };
        if platform.slack.is_some() && self.is_shown_elsewhere(&record, post).await? {
            return Ok(PostOutcome::Done);
        }
        Ok(self.send(&record, &platform, &post.organization).await)
    }

    /// Whether the reply is posted with another turn, which holds it. In Slack, where people read, a reply to several turns
    /// is to appear once.
    async fn is_shown_elsewhere(&self, record: &Record, post: &DuePost) -> Result<bool, StoreError> {
        match record.reply.as_ref().map(|r| r.holder).filter(|h| *h != record.turn_id) {
            None => Ok(false),
            Some(holder) => Ok(self.store.platform_of_turn(holder).await?.as_deref() == Some(&post.platform)),
        }
    }

    /// Posts a terminal to a platform.
    async fn send(&self, record: &Record, platform: &Platform, namespace: &str) -> PostOutcome {
        let (host, request) = match self.request(record, platform, namespace).await {
            Ok(made) => made,
            Err(outcome) => return outcome,
        };
        match request.send().await {
            Ok(response) => answered(&host, response).await,
            Err(error) => match egress::refusal(&error) {
                Some(why) => PostOutcome::Refused { problem: format!("{host}: {why}") },
                None => PostOutcome::Failed { problem: format!("{host}: {}", egress::explain(error)), asked: None },
            },
        }
    }

    /// The request that posts a terminal, and the host that it goes to; or the outcome of the attempt, where none can be
    /// made.
    async fn request(
        &self,
        record: &Record,
        platform: &Platform,
        namespace: &str,
    ) -> Result<(String, RequestBuilder), PostOutcome> {
        let (url, secret, body) = match (&platform.webhook, &platform.slack) {
            (Some(hook), _) => (
                (&hook.url, &hook.url_secret_ref),
                Some(&hook.signing_secret_ref),
                webhook::payload(record, &platform.name),
            ),
            (None, Some(slack)) => ((&slack.url, &slack.url_secret_ref), None, slack::payload(record)),
            (None, None) => {
                return Err(PostOutcome::Never {
                    problem: format!("the platform {} is of no known kind", platform.name),
                });
            }
        };
        let url = match url {
            (Some(url), _) => url.clone(),
            (None, Some(secret)) => self.secret(namespace, secret).await?,
            (None, None) => return Err(PostOutcome::Never { problem: "the platform has no URL".into() }),
        };
        let url = Url::parse(url.trim()).map_err(|_| PostOutcome::Refused { problem: "its URL is none".into() })?;
        let refused = |why: egress::Refused| PostOutcome::Refused { problem: format!("{}: {why}", host(&url)) };
        let mut request =
            self.outbound.post(&url, namespace).map_err(refused)?.header("content-type", "application/json");
        if let Some(secret) = secret {
            let keys = webhook::keys(&self.secret(namespace, secret).await?);
            let keys = keys.map_err(|why| PostOutcome::Refused {
                problem: format!("the signing secret in {} cannot be used: {why}", secret.name),
            })?;
            let (id, at) = (record.turn_id.to_string(), OffsetDateTime::now_utc().unix_timestamp());
            request = request
                .header("webhook-signature", webhook::signature(&keys, &id, at, &body))
                .header("webhook-timestamp", at.to_string())
                .header("webhook-id", id);
        }
        Ok((host(&url).to_owned(), request.timeout(REQUEST_TIMEOUT).body(body)))
    }

    /// The value under a key of a Secret.
    async fn secret(&self, namespace: &str, secret: &SecretKeyRef) -> Result<String, PostOutcome> {
        let failed = |problem| PostOutcome::Failed { problem, asked: None };
        match self.secrets.get(namespace, secret).await {
            Ok(Some(value)) => Ok(value),
            // Somebody may still make the Secret.
            Ok(None) => Err(failed(format!("there is no Secret {} with a key {}", secret.name, secret.key))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// The host of a URL. The rest of the URL may be a secret, and is written nowhere.
fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("a URL without host")
}

async fn answered(host: &str, mut response: Response) -> PostOutcome {
    let asked = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
    let outcome = judge(host, response.status(), asked.and_then(|v| retry_after(v, OffsetDateTime::now_utc())));
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_ANSWER_BYTES {
            break;
        }
    }
    outcome
}
