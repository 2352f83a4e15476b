//! Calls to a gateway's client API, typed. Every call is idempotent, so a call is repeated while the gateway cannot be
//! reached, until the client's patience is over.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::{Host, Url};

use super::error::{ApiProblem, ClientError};
use super::patience::Patience;
use super::types::{EraseResponse, SubmitRequest, SubmitResponse, TurnFilter, TurnPage, TurnRecord};
use crate::turn::keys::TurnId;

/// A connection that is silent for this long counts as lost: the server sends a keep-alive every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Told what went wrong, each time before a call is repeated.
pub type OnRetry<'a> = &'a mut (dyn FnMut(&str) + Send);

/// The body of a call that says nothing: every POST is one of JSON.
#[derive(Serialize)]
struct Nothing {}

/// A client of one gateway's API. Cloning it is cheap.
#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    gateway: Url,
    api_key: Option<String>,
    pub(super) patience: Duration,
}

impl ApiClient {
    /// A client of the gateway at this URL, which may have a path prefix.
    ///
    /// # Errors
    /// If the URL is neither `http` nor `https`, or if the key cannot stand in an HTTP header.
    pub fn new(gateway: Url, api_key: Option<String>) -> Result<Self, ClientError> {
        if !matches!(gateway.scheme(), "http" | "https") || gateway.cannot_be_a_base() {
            return Err(ClientError::Invalid(format!("the gateway's URL must be http:// or https://, not {gateway}")));
        }
        if api_key.as_deref().is_some_and(|key| !key.chars().all(|c| c.is_ascii_graphic())) {
            return Err(ClientError::Invalid(
                "the API key holds characters that no key has; is it cut or quoted?".into(),
            ));
        }
        // reqwest needs a TLS provider to be installed; an error says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE);
        if is_loopback(&gateway) {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|e| ClientError::Invalid(format!("no HTTP client: {}", cause(&e))))?;
        Ok(ApiClient { http, gateway, api_key, patience: Duration::from_secs(30) })
    }

    /// The same client with another patience: how long it repeats a call, or opens a stream again, while the gateway
    /// cannot be reached. The default is 30 s.
    pub fn with_patience(self, patience: Duration) -> Self {
        ApiClient { patience, ..self }
    }

    /// Submits a message. A repeated call carries the same message id, so that it means the same turn.
    pub async fn submit(
        &self,
        conversation: &str,
        submit: &SubmitRequest,
        on_retry: OnRetry<'_>,
    ) -> Result<SubmitResponse, ClientError> {
        let url = self.url(&["conversations", conversation, "turns"])?;
        self.call(|| self.request(Method::POST, url.clone()).json(submit), on_retry).await
    }

    /// A turn's record.
    pub async fn turn(&self, turn: TurnId) -> Result<TurnRecord, ClientError> {
        let url = self.url(&["turns", &turn.to_string()])?;
        self.call(|| self.request(Method::GET, url.clone()), &mut |_| ()).await
    }

    /// A page of a conversation's turns, newest first; `before` is the page before's `next`.
    pub async fn history(
        &self,
        conversation: &str,
        limit: u32,
        before: Option<i64>,
    ) -> Result<TurnPage<i64>, ClientError> {
        let mut url = self.url(&["conversations", conversation, "turns"])?;
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(before) = before {
            url.query_pairs_mut().append_pair("before", &before.to_string());
        }
        self.call(|| self.request(Method::GET, url.clone()), &mut |_| ()).await
    }

    /// A page of the organization's turns, newest first. Only operators may ask for it.
    pub async fn list(&self, query: &TurnFilter) -> Result<TurnPage<TurnId>, ClientError> {
        let url = self.url(&["turns"])?;
        self.call(|| self.request(Method::GET, url.clone()).query(query), &mut |_| ()).await
    }

    /// Cancels a turn, unless it has its terminal already; the record that it gives says which is the case.
    pub async fn cancel(&self, turn: TurnId) -> Result<TurnRecord, ClientError> {
        let url = self.url(&["turns", &turn.to_string(), "cancel"])?;
        self.call(|| self.request(Method::POST, url.clone()).json(&Nothing {}), &mut |_| ()).await
    }

    /// Cancels a conversation's open turns, then erases the conversation with all its turns.
    pub async fn erase(&self, conversation: &str) -> Result<EraseResponse, ClientError> {
        let url = self.url(&["conversations", conversation])?;
        self.call(|| self.request(Method::DELETE, url.clone()), &mut |_| ()).await
    }

    /// The URL of the path `/v1/…` at the gateway, with each part of the path escaped.
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
        let mut patience = Patience::new(self.patience);
        loop {
            let error = match self.once(request()).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !may_pass(&error) || patience.is_over() {
                return Err(error);
            }
            on_retry(&error.to_string());
            patience.pause().await;
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

/// Whether the same call may succeed in a moment: nothing answered, or a proxy or a gateway without its database did.
pub(super) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => matches!(problem.status, 502..=504),
        _ => false,
    }
}

/// The innermost cause of an error: "Connection refused" rather than "error sending request for url".
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

/// The problem details in an error response. Of a response without them, such as a proxy's page, the status alone.
pub(super) async fn problem(response: Response) -> ApiProblem {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let body = response.bytes().await.unwrap_or_default();
    let problem: ApiProblem = serde_json::from_slice(&body).unwrap_or_default();
    let title = if problem.title.is_empty() { title_of(status) } else { problem.title };
    ApiProblem { title, status: status.as_u16(), retry_after, ..problem }
}

fn title_of(status: StatusCode) -> String {
    format!("HTTP {} {}", status.as_u16(), status.canonical_reason().unwrap_or_default()).trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(gateway: &str) -> ApiClient {
        ApiClient::new(Url::parse(gateway).unwrap(), None).unwrap()
    }

    #[test]
    fn names_are_escaped_and_a_prefix_is_kept() {
        let url = client("https://h/pre/?q#f").url(&["conversations", "a/b c?\u{e4}", "turns"]).unwrap();
        assert_eq!(url.as_str(), "https://h/pre/v1/conversations/a%2Fb%20c%3F%C3%A4/turns");
        assert!(client("http://h").url(&["conversations", "..", "turns"]).is_err());
    }

    #[test]
    fn what_is_no_gateway_or_key_is_refused() {
        assert!(ApiClient::new(Url::parse("ftp://h").unwrap(), None).is_err());
        assert!(ApiClient::new(Url::parse("http://h").unwrap(), Some("a\nb".into())).is_err());
    }
}
