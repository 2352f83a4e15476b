//! How a worker in a pod gets its credential: it sends the token of the pod's ServiceAccount to a gateway, once, and gets a
//! credential for all further calls in exchange.

use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::client::{CallError, checked, unavailable};
use super::gateways::{GatewayRoute, Gateways};
use super::http::body_of;
use super::link::pauses;
use crate::wire::{Credential, IssuedCredential};

/// How long a gateway may take to answer. It asks the API server, which may take a while.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// For how long a token that was refused is sent again. It is longer than the 10 s for which a gateway remembers a refusal.
const BELIEVED_AGAIN: Duration = Duration::from_secs(15);
/// The longest answer, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// Why a worker got no credential.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// 401, 403, 410: the worker is to stop.
    #[error("{0}")]
    Final(CallError),
    /// The worker was told to stop before a gateway had answered.
    #[error("told to stop")]
    Stopped,
}

/// Asks one gateway after the other, over and over, until one gives a credential or a final refusal, or until `shutdown`.
pub(super) async fn exchange(
    gateways: &Gateways,
    token_file: &Path,
    shutdown: &CancellationToken,
) -> Result<String, ExchangeError> {
    let (mut pauses, mut tries, begun) = (pauses(), gateways.tries(), Instant::now());
    loop {
        let asked = async {
            match tries.next_of_any_round().await {
                Some(gateway) => {
                    let asked = ask(&gateway, token_file).await;
                    asked.map_err(|error| (error, gateway.url.to_string()))
                }
                None => Err((CallError::Unavailable("its name is not found".into()), "any gateway".into())),
            }
        };
        let asked = tokio::select! {
            asked = asked => asked,
            () = shutdown.cancelled() => return Err(ExchangeError::Stopped),
        };
        match asked {
            Ok(credential) => return Ok(credential),
            // Kubernetes gives the same answer for an invalid token and for one that it cannot look up at present.
            Err((CallError::Refused(401), gateway)) if begun.elapsed() < BELIEVED_AGAIN => {
                tracing::info!(%gateway, "the token is not believed yet");
            }
            Err((error, _)) if error.is_fatal() => return Err(ExchangeError::Final(error)),
            Err((error, gateway)) => tracing::info!(%gateway, "no credential yet: {error}"),
        }
        tokio::select! {
            () = sleep(pauses.next()) => {}
            () = shutdown.cancelled() => return Err(ExchangeError::Stopped),
        }
    }
}

/// One attempt at one gateway.
async fn ask(gateway: &GatewayRoute, token_file: &Path) -> Result<String, CallError> {
    let later = |why: String| CallError::Unavailable(why);
    // Read for each attempt, since the kubelet replaces the token before it expires.
    let token = tokio::fs::read_to_string(token_file).await;
    let token = token.map_err(|e| later(format!("cannot read the token in {}: {e}", token_file.display())))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| later(format!("{} holds no token", token_file.display())))?;
    bearer.set_sensitive(true);
    let request = gateway.http.post(gateway.endpoint("credential")).header(reqwest::header::AUTHORIZATION, bearer);
    let response = request.timeout(CALL_TIMEOUT).send().await.map_err(unavailable)?;
    let body = body_of(checked(response).await?, ANSWER_BYTES).await.map_err(later)?;
    let issued: IssuedCredential =
        serde_json::from_slice(&body).map_err(|e| later(format!("an answer not understood: {e}")))?;
    match Credential::parse(&issued.credential) {
        Some(_) => Ok(issued.credential),
        None => Err(later("an answer without a credential".into())),
    }
}
