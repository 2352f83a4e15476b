//! A worker in a pod has no credential: it shows the token of its ServiceAccount once, and gets one.

use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderValue;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::client::{CallError, body_of, checked, endpoint, unavailable};
use super::link::Backoff;
use crate::wire::{Credential, Session};

/// A gateway asks the API server, which may take a while.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a token that is refused is shown again. A gateway remembers a refusal for 10 s.
const BELIEVED_AGAIN: Duration = Duration::from_secs(15);
/// The longest answer, in bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum NoSession {
    /// 401, 403, 410: stop.
    #[error("{0}")]
    Final(CallError),
    /// SIGTERM came first.
    #[error("told to stop")]
    Stopped,
}

/// Asks one gateway after the other until one answers for good, or until `shutdown`.
pub(super) async fn exchange(
    http: &reqwest::Client,
    gateways: &[Url],
    token_file: &Path,
    shutdown: &CancellationToken,
) -> Result<String, NoSession> {
    let (mut pause, begun) = (Backoff::default(), Instant::now());
    for gateway in gateways.iter().cycle() {
        let asked = tokio::select! {
            asked = ask(http, gateway, token_file) => asked,
            () = shutdown.cancelled() => return Err(NoSession::Stopped),
        };
        match asked {
            Ok(credential) => return Ok(credential),
            // An API server that cannot look the token up says the same as of one that is not good.
            Err(CallError::Refused(401)) if begun.elapsed() < BELIEVED_AGAIN => {
                tracing::info!(%gateway, "the token is not believed yet");
            }
            Err(error) if error.is_fatal() => return Err(NoSession::Final(error)),
            Err(error) => tracing::info!(%gateway, "no session yet: {error}"),
        }
        tokio::select! {
            () = sleep(pause.next()) => {}
            () = shutdown.cancelled() => return Err(NoSession::Stopped),
        }
    }
    Err(NoSession::Stopped)
}

async fn ask(http: &reqwest::Client, gateway: &Url, token_file: &Path) -> Result<String, CallError> {
    let later = |why: String| CallError::Unavailable(why);
    // Again each time: it is replaced long before it expires.
    let token = tokio::fs::read_to_string(token_file).await;
    let token = token.map_err(|e| later(format!("cannot read the token in {}: {e}", token_file.display())))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| later(format!("{} holds no token", token_file.display())))?;
    bearer.set_sensitive(true);
    let request = http.post(endpoint(gateway, "session")).header(reqwest::header::AUTHORIZATION, bearer);
    let response = request.timeout(CALL_TIMEOUT).send().await.map_err(unavailable)?;
    let body = body_of(checked(response).await?, ANSWER_BYTES).await.map_err(later)?;
    let session: Session =
        serde_json::from_slice(&body).map_err(|e| later(format!("an answer not understood: {e}")))?;
    match Credential::parse(&session.credential) {
        Some(_) => Ok(session.credential),
        None => Err(later("an answer without a credential".into())),
    }
}
