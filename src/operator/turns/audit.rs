//! Objects that vanished while nobody watched: their turns are told from a fresh, complete list.
//!
//! A list that began after an object's turn was armed shows the object, or it is gone: it was there before it was armed,
//! and lists are quorum reads.

use std::collections::HashSet;

use kube::Api;
use kube::api::{DynamicObject, ListParams};

use super::act::{Hands, Trouble, bounded};
use crate::crd::AgentTurn;
use crate::operator::watch;
use crate::store::{ObjectRow, StoreError};

/// Objects of a page, of the API and of the store.
const PAGE: u32 = 1000;

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] Trouble),
}

/// Objects (namespace, UID) that turns were armed for and that are gone.
///
/// # Errors
/// If a list or the store was not there to the end: then nothing is missing.
pub async fn missing(hands: &Hands, namespaces: &[String]) -> Result<Vec<(String, String)>, AuditError> {
    let began = hands.store.now().await?;
    let mut rows = hands.store.objects(None, began, PAGE).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut there = HashSet::new();
    for api in watch::apis::<AgentTurn>(&hands.client, namespaces) {
        uids(&api, &mut there).await?;
    }
    let mut missing = Vec::new();
    loop {
        let Some(last) = rows.last().map(|row| row.turn_id) else { return Ok(missing) };
        let ours = |row: &ObjectRow| namespaces.is_empty() || namespaces.contains(&row.organization);
        let gone = rows.into_iter().filter(|row| ours(row) && !there.contains(&row.object.uid));
        missing.extend(gone.map(|row| (row.organization, row.object.uid)));
        rows = hands.store.objects(Some(last), began, PAGE).await?;
    }
}

/// The UIDs of a complete list; every page belongs to the same version of it.
async fn uids(api: &Api<DynamicObject>, there: &mut HashSet<String>) -> Result<(), Trouble> {
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
