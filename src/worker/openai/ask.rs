//! Asks for a completion: once, and again where nothing of an answer has come and the trouble may pass.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::OpenAiArgs;
use super::answer;
use super::completion::WORDS_BYTES;
use super::fault::Fault;
use super::messages::{messages, newer_half, usable};
use super::progress::AnswerProgress;
use super::route::ModelRoute;
use crate::turn::cause::model::{self, ModelRefusal};
use crate::turn::terminal::{Failure, cut};
use crate::wire::{Exchange, TurnPush};
use crate::worker::adapter::OutputSink;
use crate::worker::http::{beginning_of, causes};

/// The pause before a new try where the server names none.
const PAUSE: Duration = Duration::from_secs(1);

/// One turn's request.
pub(super) struct Ask<'a> {
    pub args: &'a OpenAiArgs,
    pub route: &'a ModelRoute,
    pub turn: &'a TurnPush,
    pub out: &'a OutputSink,
    pub progress: &'a AnswerProgress,
    /// The turn's hard deadline, if it is known.
    pub turn_until: Option<Instant>,
}

impl Ask<'_> {
    /// Asks for the completion and passes it on.
    pub(super) async fn complete(&self) -> Result<(), Failure> {
        match timeout_at(self.progress.until, self.tries()).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("the completion took longer than {} s", self.args.request_timeout);
                let failure = match self.progress.is_answered() {
                    true => model::broken_off(detail),
                    false => model::unavailable(detail),
                };
                self.warn(&failure, "");
                Err(failure)
            }
        }
    }

    async fn tries(&self) -> Result<(), Failure> {
        let mut history = usable(&self.turn.history);
        let mut tries_left = self.args.retries;
        let mut halved = false;
        // What the tries before were told.
        let mut before = String::new();
        loop {
            let Err(fault) = self.once(&history).await else { return Ok(()) };
            let (refusal, detail, again) = match fault {
                Fault::Final(failure) => {
                    self.warn(&failure, "");
                    return Err(failure);
                }
                Fault::Refused { refusal, detail, again } => (refusal, detail, again),
            };
            let failure = model::refused(refusal, history.is_empty(), format!("{detail}{before}"));
            if refusal == ModelRefusal::TooLong && !halved && !history.is_empty() {
                self.warn(&failure, "; it is asked again without the older half of the conversation");
                halved = true;
                history = newer_half(&history);
            } else if let Some(pause) = again.filter(|_| refusal == ModelRefusal::MayPass && tries_left > 0) {
                let left = self.time_left();
                if pause >= left {
                    let waits = format!(
                        "; it asks for a pause of {} s, and the turn ends in {} s",
                        pause.as_secs(),
                        left.as_secs()
                    );
                    self.warn(&failure, &waits);
                    return Err(Failure { detail: failure.detail.map(|detail| detail + &waits), ..failure });
                }
                self.warn(&failure, &format!("; it is asked again in {} s", pause.as_secs_f32()));
                tries_left -= 1;
                sleep(pause).await;
            } else {
                self.warn(&failure, "");
                return Err(failure);
            }
            before = cut(format!("; the try before: {detail}"), WORDS_BYTES);
        }
    }

    /// How long the turn lasts at the most.
    fn time_left(&self) -> Duration {
        let until = self.turn_until.map_or(self.progress.until, |turn| turn.min(self.progress.until));
        until.saturating_duration_since(Instant::now())
    }

    /// Operators hear of a failure as soon as it is known.
    fn warn(&self, failure: &Failure, what_follows: &str) {
        let (turn, detail) = (self.turn.turn_id, failure.detail.as_deref().unwrap_or_default());
        tracing::warn!(%turn, reason = %failure.reason, "turn {turn}: {}: {detail}{what_follows}", failure.reason);
    }

    /// Asks once.
    async fn once(&self, history: &[&Exchange]) -> Result<(), Fault> {
        let idle = Duration::from_secs(self.args.idle_timeout);
        let messages = messages(self.args.system_prompt.as_deref(), history, &self.turn.message);
        let body = json!({"model": self.args.model, "messages": messages, "stream": true});
        let mut request = self.route.request(Method::POST, "chat/completions").await.json(&body);
        if let Some(parent) = &self.turn.traceparent {
            request = request.header("traceparent", parent);
        }
        let response = match timeout(idle, request.send()).await {
            Err(_) => {
                let detail = format!("the model server at {} said nothing for {} s", self.route.told(), idle.as_secs());
                return Err(Fault::refused(ModelRefusal::MayPass, detail));
            }
            Ok(Err(error)) => return Err(self.unanswered(error)),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(self.refused(response, idle).await);
        }
        answer::pass_on(response, idle, self.progress, self.out).await
    }

    /// No answer came to a request.
    fn unanswered(&self, error: reqwest::Error) -> Fault {
        let url = self.route.told();
        let is_certificate = concerns_certificate(&error);
        let (is_connect, causes) = (error.is_connect(), causes(&error.without_url()));
        match (is_certificate, is_connect) {
            (true, _) => Fault::refused(
                ModelRefusal::ForGood,
                format!("the certificate of the model server at {url} is not accepted: {causes}"),
            ),
            (false, true) => Fault::Refused {
                refusal: ModelRefusal::MayPass,
                detail: format!("the model server at {url} cannot be reached: {causes}"),
                again: Some(PAUSE),
            },
            (false, false) => Fault::no_byte(format!("the model server at {url} gave no answer: {causes}")),
        }
    }

    /// The answer is no completion, by its status.
    async fn refused(&self, response: Response, idle: Duration) -> Fault {
        let status = response.status();
        let headers = response.headers().clone();
        let body = timeout(idle, beginning_of(response, WORDS_BYTES)).await.unwrap_or_default();
        let words = String::from_utf8_lossy(&body).trim().to_owned();
        let mut detail = format!("the model server at {} answered {status}", self.route.told());
        if status.is_redirection() {
            let to = headers.get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
            let to = to.unwrap_or_else(|| "nowhere".into());
            detail = format!(
                "{detail}, a redirect to {to}, which is not followed: the base URL has to be that of the API itself"
            );
        }
        if !words.is_empty() {
            detail = format!("{detail}: {words}");
        }
        let refusal = model::refusal(Some(status.as_u16()), &words);
        Fault::Refused { refusal, detail, again: Some(retry_after(&headers, SystemTime::now()).unwrap_or(PAUSE)) }
    }
}

/// The pause that an answer asks for: in milliseconds, in seconds, or until a time, which is compared with the server's own
/// clock where the answer tells it.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) = text("retry-after-ms").and_then(|value| value.parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Some(seconds) = after.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        return Some(seconds);
    }
    let at = httpdate::parse_http_date(after).ok()?;
    let now = text(DATE.as_str()).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(at.duration_since(now).unwrap_or_default())
}

/// Whether a connection failed because a certificate is not accepted: another try ends the same way.
fn concerns_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // The source of an I/O error is not the error in it, but the source of that.
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = within.map(|within| within as &(dyn Error + 'static)).or_else(|| error.source());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_in_each_of_its_forms() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").expect("a date");
        for (headers, expected) in [
            (vec![], None),
            (vec![("retry-after", "7")], Some(7_000)),
            (vec![("retry-after", " 1.5 ")], Some(1_500)),
            (vec![("retry-after", "7"), ("retry-after-ms", "250")], Some(250)),
            (vec![("retry-after", "Wed, 21 Oct 2026 07:28:09 GMT")], Some(9_000)),
            (vec![("retry-after", "Wed, 21 Oct 2026 07:27:00 GMT")], Some(0)),
            (
                vec![("retry-after", "Wed, 21 Oct 2026 07:28:09 GMT"), ("date", "Wed, 21 Oct 2026 07:28:07 GMT")],
                Some(2_000),
            ),
            (vec![("retry-after", "-3")], None),
            (vec![("retry-after", "soon")], None),
        ] {
            let map: HeaderMap =
                headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(retry_after(&map, now).map(|pause| pause.as_millis()), expected, "{headers:?}");
        }
    }
}
