//! The client side of the worker protocol: one function for each call, and what each status of an answer means.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::gateways::GatewayRoute;
use super::http::{StreamLines, body_of, causes};
use crate::turn::frame::Frame;
use crate::turn::keys::{Incarnation, TurnId};
use crate::wire::{
    Acked, Connect, Finish, Finished, Goodbye, Heartbeat, HeartbeatAnswer, INCARNATION, Missing, Output,
};

/// The longest line or answer that is read, in bytes. The longest that a gateway sends is a turn with its history.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// The longest body of an error that is read, in bytes; it goes into messages and logs.
const ERROR_BYTES: usize = 2 * 1024;
/// How long a gateway may take to answer a call; after that, the call has failed and is repeated there or elsewhere.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a call to a gateway failed, by what its caller is to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// 410: this incarnation is to stop.
    #[error("the gateway says that this worker's lease is dead (410)")]
    Gone,
    /// 401, 403: this incarnation is to stop.
    #[error("the gateway refuses the credential in LASTWORD_CREDENTIAL, or the pod's token (status {0})")]
    Refused(u16),
    /// 404: this worker does not hold the turn, or not any more.
    #[error("the turn is not this worker's (404)")]
    NotOwed,
    /// 409: the log is to be sent again from the offset in the answer.
    #[error("the gateway lacks output behind {}", .0.acked)]
    Missing(Missing),
    /// 503, another 5xx, 408, 429, no answer, or an answer that cannot be parsed: the call is to be repeated, at this or
    /// another gateway.
    #[error("the gateway cannot take it now: {0}")]
    Unavailable(String),
    /// Any other 4xx: a repetition would get the same answer.
    #[error("the gateway calls it malformed: {0}")]
    Rejected(String),
}

impl CallError {
    /// Whether the gateway has ended this incarnation, so that the worker is to stop.
    pub fn is_fatal(&self) -> bool {
        matches!(self, CallError::Gone | CallError::Refused(_))
    }
}

/// Makes the calls. Which gateway a call goes to is an argument of each.
#[derive(Clone)]
pub(super) struct ProtocolClient {
    authorization: HeaderValue,
    incarnation: String,
}

impl ProtocolClient {
    /// `authorization` is the whole header, `Bearer …`. It is marked as a secret, so that no log shows it.
    pub(super) fn new(mut authorization: HeaderValue, incarnation: Incarnation) -> Self {
        authorization.set_sensitive(true);
        ProtocolClient { authorization, incarnation: incarnation.to_string() }
    }

    /// Opens the turns stream; the gateway may take so long to answer.
    pub(super) async fn turns(
        &self,
        gateway: &GatewayRoute,
        connect: &Connect,
        patience: Duration,
    ) -> Result<StreamLines, CallError> {
        let mut url = gateway.endpoint("turns");
        url.query_pairs_mut()
            .append_pair("capacity", &connect.capacity.to_string())
            .append_pair("turns", &connect.turns)
            .append_pair("history", &connect.history.to_string())
            .append_pair("together", if connect.together { "true" } else { "false" });
        let request = self.signed(gateway.http.get(url));
        let response = tokio::time::timeout(patience, request.send())
            .await
            .map_err(|_| CallError::Unavailable("no answer in time".into()))?
            .map_err(unavailable)?;
        Ok(StreamLines::new(checked(response).await?, ANSWER_BYTES))
    }

    /// Posts a piece of a turn's log.
    pub(super) async fn output(
        &self,
        gateway: &GatewayRoute,
        turn: TurnId,
        offset: u64,
        frames: Vec<Frame>,
    ) -> Result<Acked, CallError> {
        let mut url = gateway.endpoint(&format!("turns/{turn}/output"));
        url.query_pairs_mut().append_pair("offset", &offset.to_string());
        self.post(gateway, url, &Output { frames }, CALL_TIMEOUT).await
    }

    pub(super) async fn finish(&self, gateway: &GatewayRoute, finish: &Finish) -> Result<Finished, CallError> {
        self.post(gateway, gateway.endpoint("finish"), finish, CALL_TIMEOUT).await
    }

    pub(super) async fn heartbeat(
        &self,
        gateway: &GatewayRoute,
        turns: Vec<TurnId>,
        timeout: Duration,
    ) -> Result<HeartbeatAnswer, CallError> {
        self.post(gateway, gateway.endpoint("heartbeat"), &Heartbeat { turns }, timeout).await
    }

    pub(super) async fn goodbye(&self, gateway: &GatewayRoute, goodbye: &Goodbye) -> Result<(), CallError> {
        let url = gateway.endpoint("goodbye");
        let request = self.signed(gateway.http.post(url)).timeout(CALL_TIMEOUT).json(goodbye);
        checked(request.send().await.map_err(unavailable)?).await.map(drop)
    }

    async fn post<A: DeserializeOwned>(
        &self,
        gateway: &GatewayRoute,
        url: Url,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let request = self.signed(gateway.http.post(url)).timeout(timeout).json(body);
        let response = checked(request.send().await.map_err(unavailable)?).await?;
        let answer = body_of(response, ANSWER_BYTES).await.map_err(CallError::Unavailable)?;
        serde_json::from_slice(&answer).map_err(|e| CallError::Unavailable(format!("an answer not understood: {e}")))
    }

    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        request.header(AUTHORIZATION, self.authorization.clone()).header(INCARNATION, &self.incarnation)
    }
}

/// The answer itself if its status is a success, else the error that its status means.
pub(super) async fn checked(response: Response) -> Result<Response, CallError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = body_of(response, ERROR_BYTES).await.unwrap_or_default();
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

/// The error for a call that got no answer. Where the gateway's certificate is not trusted, it names the flag that helps.
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
    // `source()` of an I/O error skips the error that it wraps and gives that error's source.
    let cause = match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    };
    cause.is_some_and(is_of_unknown_issuer)
}
