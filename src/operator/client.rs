//! Clients of the API server, and deadlines for calls to it: a kube client by itself lets a call that is not a watch take
//! as long as it likes.

use std::time::Duration;

use kube::{Client, Error};

/// The name under which Lastword writes Kubernetes objects: the field manager of its patches, the reporting controller of
/// its Events.
pub const FIELD_MANAGER: &str = "lastword-controller";

/// A connection to the API server is established within this time, or another one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The deadline of a call that nobody waits for. It is shorter than the claim of a delivery, so that a delivery is never
/// claimed by a second replica while the first one's call is under way.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that authenticates with the pod's ServiceAccount, or by `KUBECONFIG`. Making it sends nothing.
///
/// # Errors
/// If there is neither a ServiceAccount nor a usable kubeconfig.
pub async fn client() -> Result<Client, Error> {
    let mut config = kube::Config::infer().await.map_err(Error::InferConfig)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config)
}

/// A client like [`client`]'s whose every call is answered within `limit` or fails. It cannot watch, since a watch is a call
/// that lasts.
///
/// # Errors
/// As [`client`].
pub async fn client_within(limit: Duration) -> Result<Client, Error> {
    let mut config = kube::Config::infer().await.map_err(Error::InferConfig)?;
    (config.connect_timeout, config.read_timeout, config.write_timeout) = (Some(limit), Some(limit), Some(limit));
    Client::try_from(config)
}

/// Why a call to the API server brought no result.
#[derive(Debug, thiserror::Error)]
pub enum ApiCallError {
    /// The API server refused the call, or could not be reached.
    #[error(transparent)]
    Api(#[from] Error),
    /// The call was given up after this time.
    #[error("the API server did not answer within {0:?}")]
    Timeout(Duration),
}

/// Bounds a call by [`CALL_TIMEOUT`].
pub async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiCallError> {
    bounded_by(CALL_TIMEOUT, call).await
}

/// Bounds a call by `limit`, for a call that somebody waits for.
pub async fn bounded_by<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiCallError> {
    tokio::time::timeout(limit, call).await.map_err(|_| ApiCallError::Timeout(limit))?.map_err(ApiCallError::Api)
}
