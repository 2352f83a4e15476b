//! The worker protocol's calls, one function each.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::lines::Lines;
use crate::tls::{self, Authorities};
use crate::turn::frame::Frame;
use crate::turn::keys::{Incarnation, TurnId};
use crate::wire::{
    Acked, Connect, Finish, Finished, Goodbye, Heartbeat, HeartbeatAnswer, INCARNATION, Missing, Output,
};

/// The longest line or answer that is read, in bytes: a turn with its history.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// What is kept of an answer that is only reported, in bytes.
const REPORT_BYTES: usize = 2 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A gateway that does not answer within this is tried again, or another is.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a call had no answer that it was made for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// 410: stop.
    #[error("the gateway says that this worker's lease is dead (410)")]
    Gone,
    /// 401, 403: stop.
    #[error("the gateway refuses the credential in LASTWORD_CREDENTIAL, or the pod's token (status {0})")]
    Refused(u16),
    /// 404: the turn is not, or no longer, this worker's.
    #[error("the turn is not this worker's (404)")]
    NotOwed,
    /// 409: send again from there.
    #[error("the gateway lacks output behind {}", .0.acked)]
    Missing(Missing),
    /// 503, other 5xx, 429, no answer, an answer that makes no sense: try again, or elsewhere.
    #[error("the gateway cannot take it now: {0}")]
    Unavailable(String),
    /// Any other 4xx: trying again cannot help.
    #[error("the gateway calls it malformed: {0}")]
    Rejected(String),
}

impl CallError {
    /// Whether this incarnation is dead to Lastword.
    pub fn is_fatal(&self) -> bool {
        matches!(self, CallError::Gone | CallError::Refused(_))
    }
}

/// Makes the calls, to whichever gateway each names.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    authorization: HeaderValue,
    incarnation: String,
}

impl Client {
    /// `authorization` is a secret and marked as such.
    pub(super) fn new(http: reqwest::Client, mut authorization: HeaderValue, incarnation: Incarnation) -> Self {
        authorization.set_sensitive(true);
        Client { http, authorization, incarnation: incarnation.to_string() }
    }

    /// Opens the stream of turns.
    pub(super) async fn turns(&self, gateway: &Url, connect: &Connect) -> Result<Lines, CallError> {
        let mut url = endpoint(gateway, "turns");
        url.query_pairs_mut()
            .append_pair("capacity", &connect.capacity.to_string())
            .append_pair("turns", &connect.turns)
            .append_pair("history", &connect.history.to_string())
            .append_pair("together", if connect.together { "true" } else { "false" });
        let request = self.signed(self.http.get(url));
        let response = tokio::time::timeout(CALL_TIMEOUT, request.send())
            .await
            .map_err(|_| CallError::Unavailable("no answer in time".into()))?
            .map_err(unavailable)?;
        Ok(Lines::new(checked(response).await?, ANSWER_BYTES))
    }

    /// Posts a piece of a turn's log.
    pub(super) async fn output(
        &self,
        gateway: &Url,
        turn: TurnId,
        offset: u64,
        frames: Vec<Frame>,
    ) -> Result<Acked, CallError> {
        let mut url = endpoint(gateway, &format!("turns/{turn}/output"));
        url.query_pairs_mut().append_pair("offset", &offset.to_string());
        self.post(url, &Output { frames }, CALL_TIMEOUT).await
    }

    pub(super) async fn finish(&self, gateway: &Url, finish: &Finish) -> Result<Finished, CallError> {
        self.post(endpoint(gateway, "finish"), finish, CALL_TIMEOUT).await
    }

    pub(super) async fn heartbeat(
        &self,
        gateway: &Url,
        turns: Vec<TurnId>,
        timeout: Duration,
    ) -> Result<HeartbeatAnswer, CallError> {
        self.post(endpoint(gateway, "heartbeat"), &Heartbeat { turns }, timeout).await
    }

    pub(super) async fn goodbye(&self, gateway: &Url, goodbye: &Goodbye) -> Result<(), CallError> {
        let request = self.signed(self.http.post(endpoint(gateway, "goodbye"))).timeout(CALL_TIMEOUT).json(goodbye);
        checked(request.send().await.map_err(unavailable)?).await.map(drop)
    }

    async fn post<A: DeserializeOwned>(
        &self,
        url: Url,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let request = self.signed(self.http.post(url)).timeout(timeout).json(body);
        let response = checked(request.send().await.map_err(unavailable)?).await?;
        let answer = body_of(response, ANSWER_BYTES).await.map_err(CallError::Unavailable)?;
        serde_json::from_slice(&answer).map_err(|e| CallError::Unavailable(format!("an answer not understood: {e}")))
    }

    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        request.header(AUTHORIZATION, self.authorization.clone()).header(INCARNATION, &self.incarnation)
    }
}

/// What every call to a gateway is made with. It trusts these authorities, or those of the system.
pub(super) fn http_client(
    gateways: &[Url],
    authorities: Option<&Authorities>,
) -> Result<reqwest::Client, reqwest::Error> {
    let builder = match authorities {
        Some(authorities) => tls::http_trusting(authorities),
        None if gateways.iter().any(|url| url.scheme() == "https") => tls::http(),
        // Nobody is to be trusted, so nothing is read.
        None => reqwest::Client::builder().tls_certs_only([]),
    };
    builder
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(15))
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        // The gateway is a neighbour; a proxy that the agent program needs is not for us.
        .no_proxy()
        .build()
}

pub(super) fn endpoint(gateway: &Url, call: &str) -> Url {
    let mut url = gateway.clone();
    let base = url.path().trim_end_matches('/').to_string();
    url.set_path(&format!("{base}/worker/v1/{call}"));
    url
}

/// An answer that is a success, or what its status means.
pub(super) async fn checked(response: Response) -> Result<Response, CallError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = body_of(response, REPORT_BYTES).await.unwrap_or_default();
    let said = format!("status {}: {}", status.as_u16(), String::from_utf8_lossy(&body).trim());
    Err(match status {
        StatusCode::GONE => CallError::Gone,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CallError::Refused(status.as_u16()),
        StatusCode::NOT_FOUND => CallError::NotOwed,
        StatusCode::CONFLICT => match serde_json::from_slice(&body) {
            Ok(missing) => CallError::Missing(missing),
            Err(_) => CallError::Unavailable(said),
        },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => CallError::Unavailable(said),
        status if status.is_client_error() => CallError::Rejected(said),
        _ => CallError::Unavailable(said),
    })
}

/// An answer's body: all of it, or an error if it is longer than `limit` bytes.
pub(super) async fn body_of(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("an answer of more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A call that was not answered.
pub(super) fn unavailable(error: reqwest::Error) -> CallError {
    let mut why = causes(&error);
    if is_of_unknown_issuer(&error) {
        why.push_str("; name the authority of its certificate with --gateway-ca FILE (LASTWORD_WORKER_GATEWAY_CA)");
    }
    CallError::Unavailable(why)
}

fn is_of_unknown_issuer(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return *error == rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    }
    // The source of an I/O error is not what it wraps, but that one's own.
    let cause = match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    };
    cause.is_some_and(is_of_unknown_issuer)
}

/// An error with its causes: reqwest's own text leaves out what went wrong.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
