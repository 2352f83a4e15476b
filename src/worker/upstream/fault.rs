//! Why a server gave no answer, as far as the next step depends on it.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::Response;
use reqwest::header::{DATE, HeaderMap, LOCATION, RETRY_AFTER};
use tokio::time::timeout;

use super::route::ServerRoute;
use crate::turn::cause::model::{self, ModelRefusal};
use crate::turn::terminal::Failure;
use crate::worker::http::{beginning_of, causes};

/// The pause before a new try where the server names none.
const PAUSE: Duration = Duration::from_secs(1);
/// How much of a server's words is kept, in bytes.
pub const WORDS_BYTES: usize = 4 * 1024;

/// Why there is no answer, or no whole one.
#[derive(Debug)]
pub enum Fault {
    /// An answer began, or the turn takes none: it ends so.
    Final(Failure),
    /// The server could not be asked, or refused. `again`: nothing of an answer has come, so the server may be asked again
    /// after this pause.
    Refused { refusal: ModelRefusal, detail: String, again: Option<Duration> },
}

impl Fault {
    /// An answer came, and it is a refusal.
    pub fn refused(refusal: ModelRefusal, detail: impl Into<String>) -> Self {
        Fault::Refused { refusal, detail: detail.into(), again: None }
    }

    /// The connection was lost before the first byte of an answer: mostly because the server closed it as idle in the moment
    /// in which it was used again.
    pub fn no_byte(detail: impl Into<String>) -> Self {
        Fault::Refused { refusal: ModelRefusal::MayPass, detail: detail.into(), again: Some(Duration::ZERO) }
    }

    /// No answer came to a request. `server` is what the server is called, without its article.
    pub fn unanswered(server: &str, route: &ServerRoute, error: reqwest::Error) -> Self {
        let url = route.told();
        let is_certificate = concerns_certificate(&error);
        let (is_connect, causes) = (error.is_connect(), causes(&error.without_url()));
        match (is_certificate, is_connect) {
            (true, _) => Fault::refused(
                ModelRefusal::ForGood,
                format!("the certificate of the {server} at {url} is not accepted: {causes}"),
            ),
            (false, true) => Fault::Refused {
                refusal: ModelRefusal::MayPass,
                detail: format!("the {server} at {url} cannot be reached: {causes}"),
                again: Some(PAUSE),
            },
            (false, false) => Fault::no_byte(format!("the {server} at {url} gave no answer: {causes}")),
        }
    }

    /// The answer is a refusal, by its status. Its words are waited for as long as `idle`. `hint` says what a redirect means.
    pub async fn by_status(server: &str, route: &ServerRoute, response: Response, idle: Duration, hint: &str) -> Self {
        let status = response.status();
        let headers = response.headers().clone();
        let body = timeout(idle, beginning_of(response, WORDS_BYTES)).await.unwrap_or_default();
        let words = String::from_utf8_lossy(&body).trim().to_owned();
        let mut detail = format!("the {server} at {} answered {status}", route.told());
        if status.is_redirection() {
            let to = headers.get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
            let to = to.unwrap_or_else(|| "nowhere".into());
            detail = format!("{detail}, a redirect to {to}, which is not followed: {hint}");
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
