//! Finds AgentTurns that were deleted while nobody watched. The ties that the store holds are compared with a fresh, complete
//! list of the objects.
//!
//! The comparison is sound: an object existed before its turn was armed, and a list is a quorum read. So a list that began
//! after the turn was armed shows the object, or the object is deleted.

use std::collections::HashSet;

use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};

use super::reconcile::TurnContext;
use crate::crd::AgentTurn;
use crate::operator::client::{ApiCallError, bounded};
use crate::operator::watch;
use crate::store::StoreError;

/// Objects of one page, of the API server's list and of the store's.
const PAGE: u32 = 1000;

/// The objects (namespace, UID) that the store ties to turns and that no longer exist. A namespace that could not be listed to
/// the end has none.
///
/// # Errors
/// If the database did not answer.
pub async fn missing(context: &TurnContext, namespaces: &[String]) -> Result<Vec<(String, String)>, StoreError> {
    let began = context.store.database_time().await?;
    let mut rows = context.store.agent_turn_ties(None, began, PAGE).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let lists = list(&context.client, namespaces).await;
    let mut missing = Vec::new();
    loop {
        let Some(last) = rows.last().map(|row| row.turn_id) else { return Ok(missing) };
        let gone = rows.into_iter().filter(|row| lists.lacks(&row.organization, &row.object.uid));
        missing.extend(gone.map(|row| (row.organization, row.object.uid)));
        rows = context.store.agent_turn_ties(Some(last), began, PAGE).await?;
    }
}

/// What the API server listed.
#[derive(Debug, Default)]
struct Lists {
    /// Namespaces that were listed to the end.
    listed: HashSet<String>,
    /// Whether all namespaces were listed to the end, by one list.
    all: bool,
    /// The UIDs that were shown.
    there: HashSet<String>,
}

impl Lists {
    fn lacks(&self, namespace: &str, uid: &str) -> bool {
        (self.all || self.listed.contains(namespace)) && !self.there.contains(uid)
    }
}

async fn list(client: &Client, namespaces: &[String]) -> Lists {
    let mut lists = Lists::default();
    for (index, api) in watch::apis::<AgentTurn>(client, namespaces).iter().enumerate() {
        match uids(api, &mut lists.there).await {
            Ok(()) => match namespaces.get(index) {
                Some(namespace) => drop(lists.listed.insert(namespace.clone())),
                None => lists.all = true,
            },
            Err(error) => {
                tracing::debug!(%error, "AgentTurns of {} that vanished unseen are looked for later", api.resource_url());
            }
        }
    }
    lists
}

/// Adds the UIDs of a complete list. Its pages are of one version, so no object falls between two of them.
async fn uids(api: &Api<DynamicObject>, there: &mut HashSet<String>) -> Result<(), ApiCallError> {
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = bounded(api.list_metadata(&params)).await?;
        there.extend(page.items.into_iter().filter_map(|object| object.metadata.uid));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// A namespace that cannot be listed has no missing objects, and hides none of those of others.
    #[tokio::test]
    async fn a_namespace_that_cannot_be_listed_is_left_out() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let service = tower::service_fn(|request: Request<Body>| {
            let allowed = request.uri().path().contains("/namespaces/team/");
            let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {},
                              "items": [{"metadata": {"namespace": "team", "name": "t", "uid": "u"}}]});
            let refused = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                                 "reason": "Forbidden", "message": "no"});
            let (code, body) = if allowed { (200, list) } else { (403, refused) };
            let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
            async move { Ok::<_, std::convert::Infallible>(answer.expect("an answer")) }
        });
        let client = Client::new(service, "team");
        let lists = list(&client, &["closed".to_owned(), "team".to_owned()]).await;
        assert!(lists.lacks("team", "gone") && !lists.lacks("team", "u") && !lists.lacks("closed", "gone"));
        assert!(!lists.lacks("another", "gone"), "it is not ours");
        let lists = list(&client, &[]).await;
        assert!(!lists.lacks("team", "gone"), "the list of all was refused");
    }
}
