//! The client API of a gateway, typed. Every call is idempotent, so every call is repeated while the gateway cannot be
//! reached, for at most the client's patience.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::{Host, Url};

use super::error::{ClientError, Problem};
use super::stream::{self, EventStream, Source};
use super::types::{Erased, ListQuery, Page, Record, Submit, Submitted};
use crate::turn::keys::TurnId;

/// Silence on a connection after which it counts as lost: three of the server's keep-alives.
const SILENCE: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest and the longest pause between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Called before a call is repeated, with what went wrong.
pub type OnRetry<'a> = &'a mut (dyn FnMut(&str) + Send);

/// A client of one gateway. Cloning is cheap.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    gateway: Url,
    api_key: Option<String>,
    pub(super) patience: Duration,
}

impl Client {
    /// For the gateway at this URL, which may have a path prefix.
    ///
    /// # Errors
    /// When the URL is not one of HTTP, or the key cannot stand in a header.
    pub fn new(gateway: Url, api_key: Option<String>) -> Result<Self, ClientError> {
        if !matches!(gateway.scheme(), "http" | "https") || gateway.cannot_be_a_base() {
            return Err(ClientError::Invalid(format!("the gateway's URL must be http:// or https://, not {gateway}")));
        }
        if api_key.as_deref().is_some_and(|key| !key.chars().all(|c| c.is_ascii_graphic())) {
            return Err(ClientError::Invalid(
                "the API key holds characters that no key has; is it cut or quoted?".into(),
            ));
        }
        // reqwest is built without a TLS provider of its own; an error means that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE);
        if is_loopback(&gateway) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| ClientError::Invalid(format!("no HTTP client: {}", cause(&e))))?;
        Ok(Client { http, gateway, api_key, patience: Duration::from_secs(30) })
    }

    /// How long a call, or the reconnecting of a stream, goes on while the gateway cannot be reached; default 30 s.
    pub fn with_patience(self, patience: Duration) -> Self {
        Client { patience, ..self }
    }

    /// Submits a message. Repeats carry the same message id, so that they mean the same turn.
    pub async fn submit(
        &self,
        conversation: &str,
        submit: &Submit,
        on_retry: OnRetry<'_>,
    ) -> Result<Submitted, ClientError> {
        let url = self.url(&["conversations", conversation, "turns"])?;
        self.call(|| self.request(Method::POST, url.clone()).json(submit), on_retry).await
    }

    /// A turn's or a conversation's events from behind `after` on. Reconnects by itself; a turn's stream ends after its
    /// `complete`, a session never.
    pub fn events(&self, source: Source, after: Option<String>) -> EventStream {
        stream::events(self.clone(), source, after)
    }

    /// A turn's record.
    pub async fn turn(&self, turn: TurnId) -> Result<Record, ClientError> {
        let url = self.url(&["turns", &turn.to_string()])?;
        self.call(|| self.request(Method::GET, url.clone()), &mut |_| ()).await
    }

    /// A conversation's turns, newest first; `before` is a former page's `next`.
    pub async fn history(&self, conversation: &str, limit: u32, before: Option<i64>) -> Result<Page<i64>, ClientError> {
        let mut url = self.url(&["conversations", conversation, "turns"])?;
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(before) = before {
            url.query_pairs_mut().append_pair("before", &before.to_string());
        }
        self.call(|| self.request(Method::GET, url.clone()), &mut |_| ()).await
    }

    /// Turns of the whole organization, newest first; for operators.
    pub async fn list(&self, query: &ListQuery) -> Result<Page<TurnId>, ClientError> {
        let url = self.url(&["turns"])?;
        self.call(|| self.request(Method::GET, url.clone()).query(query), &mut |_| ()).await
    }

    /// Cancels a turn, unless it has its last word already; the record says which it is.
    pub async fn cancel(&self, turn: TurnId) -> Result<Record, ClientError> {
        let url = self.url(&["turns", &turn.to_string(), "cancel"])?;
        self.call(|| self.request(Method::POST, url.clone()), &mut |_| ()).await
    }

    /// Cancels a conversation's open turns, then erases all that is known of it.
    pub async fn erase(&self, conversation: &str) -> Result<Erased, ClientError> {
        let url = self.url(&["conversations", conversation])?;
        self.call(|| self.request(Method::DELETE, url.clone()), &mut |_| ()).await
    }

    /// `gateway/v1/…`, every part escaped.
    pub(super) fn url(&self, parts: &[&str]) -> Result<Url, ClientError> {
        if let Some(part) = parts.iter().find(|part| matches!(**part, "" | "." | "..")) {
            return Err(ClientError::Invalid(format!("{part:?} cannot be a conversation's name: no URL can hold it")));
        }
        let mut url = self.gateway.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(parts);
        }
        Ok(url)
    }

    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> RequestBuilder,
        on_retry: OnRetry<'_>,
    ) -> Result<T, ClientError> {
        let mut backoff = Backoff::new(self.patience);
        loop {
            let error = match self.once(request()).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !may_pass(&error) || backoff.is_over() {
                return Err(error);
            }
            on_retry(&error.to_string());
            backoff.pause().await;
        }
    }

    async fn once<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if !response.status().is_success() {
            return Err(ClientError::Problem(problem(response).await));
        }
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&body).map_err(|e| self.protocol(e))
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        self.lost(cause(error))
    }

    pub(super) fn lost(&self, why: String) -> ClientError {
        ClientError::Unreachable { gateway: self.gateway.to_string(), why }
    }

    pub(super) fn protocol(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol { gateway: self.gateway.to_string(), why: why.to_string() }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether the same call may succeed in a moment: nobody answered, or nobody who could.
pub(super) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => matches!(problem.status, 502..=504),
        _ => false,
    }
}

/// The innermost cause: "Connection refused", rather than "error sending request for url".
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

/// The problem that a response tells of; of a proxy's page, the status alone.
pub(super) async fn problem(response: Response) -> Problem {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let body = response.bytes().await.unwrap_or_default();
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    let title = if problem.title.is_empty() { title_of(status) } else { problem.title };
    Problem { title, status: status.as_u16(), retry_after, ..problem }
}

fn title_of(status: StatusCode) -> String {
    format!("HTTP {} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()).trim_end().to_string()
}

/// Pauses that double up to a cap, each with jitter, until the patience is over.
pub(super) struct Backoff {
    next: Duration,
    patience: Duration,
    since: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(patience: Duration) -> Self {
        Backoff { next: BACKOFF.0, patience, since: None }
    }

    /// Starts anew: it went well for a while.
    pub(super) fn reset(&mut self) {
        *self = Backoff::new(self.patience);
    }

    /// Whether the patience has passed since the first failure.
    pub(super) fn is_over(&mut self) -> bool {
        self.since.get_or_insert_with(Instant::now).elapsed() >= self.patience
    }

    pub(super) async fn pause(&mut self) {
        let pause = rand::random_range(self.next / 2..=self.next);
        self.next = (self.next * 2).min(BACKOFF.1);
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(gateway: &str) -> Client {
        Client::new(Url::parse(gateway).unwrap(), None).unwrap()
    }

    #[test]
    fn names_are_escaped_and_a_prefix_is_kept() {
        let url = client("https://h/pre/?q#f").url(&["conversations", "a/b c?\u{e4}", "turns"]).unwrap();
        assert_eq!(url.as_str(), "https://h/pre/v1/conversations/a%2Fb%20c%3F%C3%A4/turns");
        assert!(client("http://h").url(&["conversations", "..", "turns"]).is_err());
    }

    #[test]
    fn what_is_no_gateway_or_key_is_refused() {
        assert!(Client::new(Url::parse("ftp://h").unwrap(), None).is_err());
        assert!(Client::new(Url::parse("http://h").unwrap(), Some("a\nb".into())).is_err());
    }

    #[tokio::test]
    async fn patience_counts_from_the_first_failure() {
        let mut backoff = Backoff::new(Duration::from_millis(40));
        assert!(!backoff.is_over());
        backoff.pause().await; // 50 ms at least
        assert!(backoff.is_over());
        backoff.reset();
        assert!(!backoff.is_over());
    }
}
