//! Organizations are namespaces, and a namespace is known by its UID: one that is made again under the same name inherits
//! nothing of the former one (`store/organization.rs`).
//!
//! An Agent is served only when its namespace was read after the Agent was seen, and nothing of another namespace is left in
//! the organization. What is left is erased here, by the leader, level-based: a leader that dies in between is followed by one
//! that goes on.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::client::{ApiCallError, bounded};
use crate::every::{Again, Every};
use crate::leadership::Leadership;
use crate::store::{OrganizationTie, Store, StoreError};

/// How often it is looked for what is to be erased.
const PERIOD: Duration = Duration::from_secs(1);
/// How often the namespaces of all organizations are read, so that one that was made again is noticed before it has an Agent.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why an organization is not known to be its namespace.
#[derive(Debug, thiserror::Error)]
pub enum TieError {
    #[error("the namespace cannot be read: {0}")]
    Api(#[from] ApiCallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads a namespace and ties its organization to it. `None`: there is no such namespace.
pub async fn tie(client: &Client, store: &Store, namespace: &str) -> Result<Option<OrganizationTie>, TieError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = match bounded(api.get_metadata(namespace)).await {
        Err(ApiCallError::Api(kube::Error::Api(status))) if status.is_not_found() => return Ok(None),
        found => found?.metadata,
    };
    let (Some(uid), Some(created)) = (found.uid, found.creation_timestamp) else { return Ok(None) };
    let created = OffsetDateTime::from_unix_timestamp(created.0.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let tie = store.tie_organization(namespace, &uid, created).await?;
    if tie == OrganizationTie::NotEmptied {
        tracing::info!(namespace, "namespace {namespace} was made again: what the former one left is being erased");
    }
    Ok(Some(tie))
}

/// Erases what former namespaces left, and looks after all organizations' namespaces, until `shutdown`, whenever this replica
/// leads.
pub async fn run(store: Store, client: Client, leadership: Leadership, shutdown: CancellationToken) {
    let lead_again = || lead(store.clone(), client.clone(), shutdown.clone());
    tokio::select! {
        () = leadership.while_leading(lead_again) => {}
        () = shutdown.cancelled() => {}
    }
}

/// What a pass needs is owned, so that the future is `Send`, which the compiler cannot prove of a pass that borrows.
async fn lead(store: Store, client: Client, shutdown: CancellationToken) {
    let mut looked: Option<Instant> = None;
    let passes = Every::new("emptying the organizations of namespaces that were made again", PERIOD).at_once();
    let pass = async move |_| {
        if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            looked = Some(Instant::now());
            look(&store, &client).await?;
        }
        let more = store.empty_organizations().await?;
        Ok::<_, StoreError>(if more { Again::AtOnce } else { Again::Later })
    };
    passes.run(&shutdown, pass).await;
}

/// Reads the namespaces of all organizations.
async fn look(store: &Store, client: &Client) -> Result<(), StoreError> {
    for namespace in store.tied_organizations().await? {
        match tie(client, store, &namespace).await {
            Ok(_) => {}
            Err(TieError::Store(error)) => return Err(error),
            Err(error) => {
                // Those that are left are read later. No Agent of theirs is served anew before.
                tracing::debug!(%error, "the namespaces of organizations are read later");
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// What is not there, or may not be read, ties nothing.
    #[tokio::test]
    async fn a_namespace_that_is_not_read_ties_nothing() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let service = tower::service_fn(|request: Request<Body>| {
            let code = if request.uri().path() == "/api/v1/namespaces/gone" { 404 } else { 403 };
            let refused = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                                 "reason": if code == 404 { "NotFound" } else { "Forbidden" }, "message": "no"});
            let answer = Response::builder().status(code).body(Body::from(refused.to_string().into_bytes()));
            async move { Ok::<_, std::convert::Infallible>(answer.expect("an answer")) }
        });
        let client = Client::new(service, "lastword");
        let store = Store::away();
        assert!(matches!(tie(&client, &store, "gone").await, Ok(None)));
        assert!(matches!(tie(&client, &store, "closed").await, Err(TieError::Api(_))));
    }
}
