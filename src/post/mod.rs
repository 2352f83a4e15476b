//! The renderers of the platforms that an Agent names itself: `webhook` and `slack`. Every controller replica runs
//! [`run`], and `dev`.
//!
//! A row is posted at least once, always under the same `webhook-id`: a renderer takes it for longer than an attempt may
//! last, and removes it after a 2xx. Everything about an attempt is read for it: the Agent's spec, the URL, the signing
//! secret. What fails is tried again with growing pauses ([`next`]), and at last given up: parked with its problem.

mod slack;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Response, StatusCode, Url};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::crd::{AgentSpec, Platform, SecretKeyRef};
use crate::egress::{self, Outbound};
use crate::secrets::Secrets;
use crate::store::{DuePost, PostPlace, Record, Store, StoreError};
use crate::turn::keys::GatewayId;

/// Pause between looks for due rows.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A receiver must have answered by then.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest that a whole attempt takes, reading included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(40);
/// A claim of a row; longer than an attempt and the writing of its outcome.
const CLAIM_SECONDS: u32 = 60;
/// The pause after the database refused an outcome, and how often it is written: not longer than the claim.
const RETRY: Duration = Duration::from_millis(500);
const MAX_WRITES: u32 = 10;
/// Posts under way at once, and rows of one look.
const MAX_AT_ONCE: usize = 64;
const MAX_ROWS: usize = 16;
/// No more rows are taken of a platform of an organization, or of an organization, that has so many posts under way: a
/// receiver that hangs leaves room for the others. A look may go beyond it by what it takes.
const MAX_PER_PLACE: usize = 16;
const MAX_PER_ORGANIZATION: usize = 24;
/// Of an answer no more than this is read, in bytes: only so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// After `shutdown`, posts under way have this long.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// The pause after the first attempt that failed, in seconds; doubled by each further one up to the longest.
const FIRST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 3600.0;
/// The longest pause that a receiver may ask for, in seconds.
const LONGEST_ASKED: u64 = 6 * 3600;
/// Attempts at the most: about 26 hours.
pub const MAX_ATTEMPTS: u32 = 36;
/// Attempts if the receiver or a rule of ours says no: about an hour, for whoever corrects a URL.
pub const MAX_REFUSALS: u32 = 12;

/// What came of an attempt. Texts are for operators; none holds a URL or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sent {
    /// Posted, or nothing is to be posted.
    Done,
    /// It may go better later.
    Failed { problem: String, asked: Option<u64> },
    /// It goes no better unless somebody corrects something.
    Refused { problem: String },
    /// It never goes.
    Never { problem: String },
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Remove,
    Later { seconds: f64, problem: String },
    GiveUp { problem: String },
}

/// Decides on the `attempts`th attempt; `jitter` is from 0 to 1.
fn next(sent: Sent, attempts: u32, jitter: f64) -> Next {
    let (problem, asked, most) = match sent {
        Sent::Done => return Next::Remove,
        Sent::Never { problem } => return Next::GiveUp { problem },
        Sent::Failed { problem, asked } => (problem, asked, MAX_ATTEMPTS),
        Sent::Refused { problem } => (problem, None, MAX_REFUSALS),
    };
    if attempts >= most {
        return Next::GiveUp { problem };
    }
    let pause = (FIRST_PAUSE * 2f64.powi(attempts.saturating_sub(1).min(30) as i32)).min(LONGEST_PAUSE);
    // From three quarters of it to five quarters: receivers that were down are not all called at once.
    let pause = pause * (0.75 + jitter / 2.0);
    Next::Later { seconds: pause.max(asked.unwrap_or(0).min(LONGEST_ASKED) as f64), problem }
}

/// Judges an answer. 410 says that nobody will listen again; other 4xx that something must be corrected, but for those
/// that are about the moment. A redirect is not followed, and so is a refusal too.
fn judge(host: &str, status: StatusCode, asked: Option<u64>) -> Sent {
    let problem = format!("{host} answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Sent::Done,
        410 => Sent::Never { problem },
        408 | 409 | 425 | 429 => Sent::Failed { problem, asked },
        300..=499 => Sent::Refused { problem },
        _ => Sent::Failed { problem, asked },
    }
}

/// Seconds that `Retry-After` asks for, in either of its forms.
fn retry_after(value: &str, now: OffsetDateTime) -> Option<u64> {
    let value = value.trim();
    value.parse().ok().or_else(|| {
        let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp().as_second();
        u64::try_from(at - now.unix_timestamp()).ok()
    })
}

/// Posts due rows until `shutdown`; what is under way then has a few seconds, and is posted again by whoever takes it next.
pub async fn run(store: Store, secrets: Arc<dyn Secrets>, outbound: Outbound, shutdown: CancellationToken) {
    let poster = Poster { store, secrets, outbound, by: GatewayId::new() };
    let mut posts = JoinSet::new();
    let mut busy: HashMap<PostPlace, usize> = HashMap::new();
    let mut away = false;
    loop {
        let room = MAX_ROWS.min(MAX_AT_ONCE.saturating_sub(posts.len()));
        let full = full(&busy);
        let mut backlog = room == 0;
        match poster.store.take_posts(poster.by, CLAIM_SECONDS, room as u32, &full).await {
            Ok(due) => {
                away = false;
                backlog |= due.len() == room;
                for post in due {
                    let place = post.place();
                    *busy.entry(place.clone()).or_default() += 1;
                    let poster = poster.clone();
                    posts.spawn(async move {
                        poster.post(post).await;
                        place
                    });
                }
            }
            Err(error) if !std::mem::replace(&mut away, true) => {
                tracing::warn!(%error, "posts to webhooks and Slack wait for the database");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = posts.join_next(), if backlog => forget(&mut busy, ended),
            () = shutdown.cancelled() => break,
        }
        while let Some(ended) = posts.try_join_next() {
            forget(&mut busy, ended);
        }
    }
    let _ = tokio::time::timeout(STOP_WITHIN, async { while posts.join_next().await.is_some() {} }).await;
}

/// Places and organizations that have enough under way.
fn full(busy: &HashMap<PostPlace, usize>) -> Vec<PostPlace> {
    let mut organizations: HashMap<&str, usize> = HashMap::new();
    for (place, posts) in busy {
        *organizations.entry(&place.organization).or_default() += posts;
    }
    let organizations = organizations.into_iter().filter(|(_, posts)| *posts >= MAX_PER_ORGANIZATION);
    let organizations = organizations.map(|(name, _)| PostPlace { organization: name.to_owned(), platform: None });
    let places = busy.iter().filter(|(_, posts)| **posts >= MAX_PER_PLACE).map(|(place, _)| place.clone());
    places.chain(organizations).collect()
}

fn forget(busy: &mut HashMap<PostPlace, usize>, ended: Result<PostPlace, tokio::task::JoinError>) {
    match ended {
        Ok(place) => {
            if let Some(count) = busy.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    busy.remove(&place);
                }
            }
        }
        // A task that panicked has said so, and cannot say whose it was: then nobody is held to be busy.
        Err(_) => busy.clear(),
    }
}

#[derive(Clone)]
struct Poster {
    store: Store,
    secrets: Arc<dyn Secrets>,
    outbound: Outbound,
    by: GatewayId,
}

impl Poster {
    /// One attempt, and what follows from it.
    async fn post(&self, post: DuePost) {
        let sent = match tokio::time::timeout(ATTEMPT_TIMEOUT, self.attempt(&post)).await {
            Ok(Ok(sent)) => sent,
            // The claim runs out, and somebody takes the row again.
            Ok(Err(error)) => return tracing::debug!(%error, "turn {} is posted later", post.turn_id),
            Err(_) => Sent::Failed { problem: format!("not done within {ATTEMPT_TIMEOUT:?}"), asked: None },
        };
        let (turn, platform, attempts) = (post.turn_id, post.platform.as_str(), post.attempts);
        let next = next(sent, attempts, rand::random());
        match &next {
            Next::Remove => tracing::debug!(%turn, platform, attempts, "turn {turn} is posted"),
            Next::Later { problem, seconds } => {
                tracing::info!(%turn, platform, attempts, "turn {turn} is posted again in {seconds:.0} s: {problem}");
            }
            Next::GiveUp { problem } => {
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

    async fn write(&self, post: &DuePost, next: &Next) -> Result<(), StoreError> {
        match next {
            Next::Remove => self.store.remove_deliveries(&post.platform, &[post.turn_id]).await,
            Next::Later { seconds, problem } => self.store.put_off_post(post, *seconds, problem).await,
            Next::GiveUp { problem } => self.store.give_up_post(post, problem).await,
        }
    }

    async fn attempt(&self, post: &DuePost) -> Result<Sent, StoreError> {
        // Erased or pruned: there is nothing to say any more.
        let Some(record) = self.store.turn_record(post.turn_id).await? else { return Ok(Sent::Done) };
        let Some(spec) = self.store.agent_spec(&post.organization, &record.agent).await? else {
            // Deleted and made again is how many people replace things.
            return Ok(Sent::Refused { problem: format!("there is no Agent {} any more", record.agent) });
        };
        let Ok(spec) = serde_json::from_value::<AgentSpec>(spec) else {
            return Ok(Sent::Failed { problem: format!("the Agent {} cannot be read", record.agent), asked: None });
        };
        let Some(platform) = spec.platforms.into_iter().find(|p| p.name == post.platform) else {
            let problem = format!("the Agent {} has no platform {} any more", record.agent, post.platform);
            return Ok(Sent::Refused { problem });
        };
        if platform.slack.is_some() && self.is_shown_elsewhere(&record, post).await? {
            return Ok(Sent::Done);
        }
        Ok(self.send(&record, &platform, &post.organization).await.unwrap_or_else(|sent| sent))
    }

    /// People read Slack: a reply to several turns stands there once, with the turn that holds it.
    async fn is_shown_elsewhere(&self, record: &Record, post: &DuePost) -> Result<bool, StoreError> {
        match record.reply.as_ref().map(|r| r.holder).filter(|h| *h != record.turn_id) {
            None => Ok(false),
            Some(holder) => Ok(self.store.platform_of_turn(holder).await?.as_deref() == Some(&post.platform)),
        }
    }

    async fn send(&self, record: &Record, platform: &Platform, namespace: &str) -> Result<Sent, Sent> {
        let (url, secret, body) = match (&platform.webhook, &platform.slack) {
            (Some(hook), _) => (
                (&hook.url, &hook.url_secret_ref),
                Some(&hook.signing_secret_ref),
                webhook::payload(record, &platform.name),
            ),
            (None, Some(slack)) => ((&slack.url, &slack.url_secret_ref), None, slack::payload(record)),
            (None, None) => {
                return Err(Sent::Never { problem: format!("the platform {} is of no known kind", platform.name) });
            }
        };
        let url = match url {
            (Some(url), _) => url.clone(),
            (None, Some(secret)) => self.secret(namespace, secret).await?,
            (None, None) => return Err(Sent::Never { problem: "the platform has no URL".into() }),
        };
        let url = Url::parse(url.trim()).map_err(|_| Sent::Refused { problem: "its URL is none".into() })?;
        let refused = |why: egress::Refused| Sent::Refused { problem: format!("{}: {why}", host(&url)) };
        let mut request = self.outbound.post(&url).map_err(refused)?.header("content-type", "application/json");
        if let Some(secret) = secret {
            let keys = webhook::keys(&self.secret(namespace, secret).await?);
            let keys = keys.map_err(|why| Sent::Refused {
                problem: format!("the signing secret in {} cannot be used: {why}", secret.name),
            })?;
            let (id, at) = (record.turn_id.to_string(), OffsetDateTime::now_utc().unix_timestamp());
            request = request
                .header("webhook-signature", webhook::signature(&keys, &id, at, &body))
                .header("webhook-timestamp", at.to_string())
                .header("webhook-id", id);
        }
        match request.timeout(REQUEST_TIMEOUT).body(body).send().await {
            Ok(response) => Ok(answered(host(&url), response).await),
            Err(error) => Err(match egress::refusal(&error) {
                Some(why) => refused(why),
                None => Sent::Failed { problem: format!("{}: {}", host(&url), egress::explain(error)), asked: None },
            }),
        }
    }

    async fn secret(&self, namespace: &str, secret: &SecretKeyRef) -> Result<String, Sent> {
        let failed = |problem| Sent::Failed { problem, asked: None };
        match self.secrets.get(namespace, secret).await {
            Ok(Some(value)) => Ok(value),
            // Somebody may make it.
            Ok(None) => Err(failed(format!("there is no Secret {} with a key {}", secret.name, secret.key))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// All of a URL that anybody may read.
fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("a URL without host")
}

async fn answered(host: &str, mut response: Response) -> Sent {
    let asked = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
    let sent = judge(host, response.status(), asked.and_then(|v| retry_after(v, OffsetDateTime::now_utc())));
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_ANSWER_BYTES {
            break;
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(asked: Option<u64>) -> Sent {
        Sent::Failed { problem: String::new(), asked }
    }

    #[test]
    fn pauses_grow_and_end() {
        let seconds = |sent: Sent, attempts, jitter| match next(sent, attempts, jitter) {
            Next::Later { seconds, .. } => Some(seconds),
            Next::GiveUp { .. } => None,
            Next::Remove => panic!("it failed"),
        };
        let refused = || Sent::Refused { problem: String::new() };
        for (sent, attempts, jitter, expected) in [
            (failed(None), 1, 0.5, Some(1.0)),
            (failed(None), 1, 0.0, Some(0.75)),
            (failed(None), 1, 1.0, Some(1.25)),
            (failed(None), 5, 0.5, Some(16.0)),
            (failed(None), 12, 0.5, Some(2048.0)),
            (failed(None), 20, 0.5, Some(3600.0)),
            (failed(None), 35, 0.5, Some(3600.0)),
            (failed(None), 36, 0.5, None),
            (failed(Some(120)), 1, 0.5, Some(120.0)),
            (failed(Some(1)), 5, 0.5, Some(16.0)),
            (failed(Some(u64::MAX)), 1, 0.5, Some(21600.0)),
            (refused(), 11, 0.5, Some(1024.0)),
            (refused(), 12, 0.5, None),
            (Sent::Never { problem: String::new() }, 1, 0.5, None),
        ] {
            assert_eq!(seconds(sent.clone(), attempts, jitter), expected, "{sent:?} after {attempts}");
        }
        assert_eq!(next(Sent::Done, 1, 0.5), Next::Remove);
        let all: f64 = (1..MAX_ATTEMPTS).filter_map(|n| seconds(failed(None), n, 0.5)).sum();
        let refusals: f64 = (1..MAX_REFUSALS).filter_map(|n| seconds(refused(), n, 0.5)).sum();
        assert!((24.0..28.0).contains(&(all / 3600.0)), "about a day: {all}");
        assert!((1800.0..4000.0).contains(&refusals), "long enough to correct a URL: {refusals}");
    }

    #[test]
    fn one_organization_leaves_room_for_the_others() {
        let place = |organization: &str, platform: Option<&str>| PostPlace {
            organization: organization.into(),
            platform: platform.map(Into::into),
        };
        let busy = |counts: &[(&str, &str, usize)]| {
            let counts = counts.iter().map(|(o, p, n)| (place(o, Some(p)), *n));
            full(&counts.collect())
        };
        assert_eq!(busy(&[("a", "x", 15), ("a", "y", 8)]), []);
        assert_eq!(busy(&[("a", "x", 16), ("b", "x", 7)]), [place("a", Some("x"))]);
        assert_eq!(busy(&[("a", "x", 12), ("a", "y", 12), ("b", "x", 12)]), [place("a", None)]);
    }

    #[test]
    fn answers_are_judged() {
        let judged = |status: u16| judge("h", StatusCode::from_u16(status).expect("a status"), Some(7));
        let problem = |status: u16| format!("h answered {status}");
        for (status, expected) in [
            (200, Sent::Done),
            (204, Sent::Done),
            (301, Sent::Refused { problem: problem(301) }),
            (400, Sent::Refused { problem: problem(400) }),
            (404, Sent::Refused { problem: problem(404) }),
            (408, Sent::Failed { problem: problem(408), asked: Some(7) }),
            (410, Sent::Never { problem: problem(410) }),
            (429, Sent::Failed { problem: problem(429), asked: Some(7) }),
            (500, Sent::Failed { problem: problem(500), asked: Some(7) }),
            (503, Sent::Failed { problem: problem(503), asked: Some(7) }),
        ] {
            assert_eq!(judged(status), expected);
        }
        let now = OffsetDateTime::from_unix_timestamp(1_445_412_440).expect("a time");
        for (value, expected) in [
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(40)),
            ("Wed, 21 Oct 2015 07:20:00 GMT", None),
            ("soon", None),
            ("-5", None),
        ] {
            assert_eq!(retry_after(value, now), expected, "{value}");
        }
    }
}
