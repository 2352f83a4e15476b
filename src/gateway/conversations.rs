//! Which conversation a path means. `{conversation}` is the caller's own name of one, or an id, which every answer about a
//! conversation has. An operator reaches others' by id, or by name with `?owner=`.
//!
//! A conversation that the caller may not see is answered like one that does not exist.

use axum::http::StatusCode;
use serde::Deserialize;

use crate::gateway::Gateway;
use crate::gateway::audit::Subject;
use crate::gateway::caller::ApiCaller;
use crate::problem::Problem;
use crate::store::Conversation;
use crate::turn::keys::{ConversationId, check_conversation};

/// The query of calls on a conversation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct OwnerQuery {
    pub owner: Option<String>,
}

/// Finds the conversation; `None`: there is none that the caller sees. That an operator sees another's is written down before.
///
/// # Errors
/// 403 for somebody else's name of a conversation, unless an operator asks.
pub(in crate::gateway) async fn find(
    gateway: &Gateway,
    caller: &ApiCaller,
    conversation: &str,
    owner: Option<&str>,
) -> Result<Option<Conversation>, Problem> {
    let found = look(gateway, caller, conversation, owner).await?;
    if let Some(found) = &found {
        gateway.audit.reads(caller, &found.owner, Subject::Conversation(found.id)).await?;
    }
    Ok(found)
}

async fn look(
    gateway: &Gateway,
    caller: &ApiCaller,
    conversation: &str,
    owner: Option<&str>,
) -> Result<Option<Conversation>, Problem> {
    check_conversation(conversation).map_err(|e| Problem::bad_request(e.to_string()))?;
    let principal = &caller.principal;
    let (store, organization) = (&gateway.store, &principal.organization);
    if let Some(owner) = owner.filter(|owner| **owner != *principal.user) {
        if !caller.is_operator() {
            return Err(Problem::new(StatusCode::FORBIDDEN, "only operators may name another owner"));
        }
        return Ok(store.conversation(organization, owner, conversation).await?);
    }
    if let Some(own) = store.conversation(organization, &principal.user, conversation).await? {
        return Ok(Some(own));
    }
    match id_of(conversation) {
        Some(id) => {
            let found = store.conversation_by_id(id).await?;
            Ok(found.filter(|c| caller.sees(&c.organization, &c.owner)))
        }
        None => Ok(None),
    }
}

/// [`find`], where there has to be one.
pub(in crate::gateway) async fn seen(
    gateway: &Gateway,
    caller: &ApiCaller,
    conversation: &str,
    owner: Option<&str>,
) -> Result<Conversation, Problem> {
    find(gateway, caller, conversation, owner).await?.ok_or_else(|| Problem::not_found("conversation"))
}

/// The caller's own name of the conversation that a message is for, which need not exist yet.
///
/// # Errors
/// 403 for one that the caller sees and that is somebody else's: only its owner submits turns.
pub(in crate::gateway) async fn own_name(
    gateway: &Gateway,
    caller: &ApiCaller,
    conversation: String,
    owner: Option<&str>,
) -> Result<String, Problem> {
    check_conversation(&conversation).map_err(|e| Problem::bad_request(e.to_string()))?;
    let foreign = || Problem::new(StatusCode::FORBIDDEN, "only its owner sends messages to a conversation");
    if owner.is_some_and(|owner| *owner != *caller.principal.user) {
        return Err(foreign());
    }
    if id_of(&conversation).is_none() {
        return Ok(conversation);
    }
    match look(gateway, caller, &conversation, None).await? {
        Some(found) if found.owner != caller.principal.user => Err(foreign()),
        Some(found) => Ok(found.name),
        None => Ok(conversation),
    }
}

/// The id that a path names, as answers write it: with hyphens, in lower case.
fn id_of(text: &str) -> Option<ConversationId> {
    text.parse::<ConversationId>().ok().filter(|id| id.to_string() == text)
}
