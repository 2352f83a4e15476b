//! Calls to the API server under our own deadline: kube's client has none for a call.

use std::time::Duration;

use kube::Error;

/// What nobody waits for may take this long; deliveries are claimed for longer.
pub const CALL: Duration = Duration::from_secs(10);

/// Why a call to the API server did not come to an answer, or to a bad one.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Api(#[from] Error),
    #[error("the API server did not answer within {0:?}")]
    Late(Duration),
}

/// A call within [`CALL`].
pub async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    bounded_by(CALL, call).await
}

/// A call that somebody waits for, within `limit`.
pub async fn bounded_by<T>(limit: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    tokio::time::timeout(limit, call).await.map_err(|_| Trouble::Late(limit))?.map_err(Trouble::Api)
}
