//! Organizations in Kubernetes: each is a namespace, by its UID. A namespace that is made again under the same name is another
//! one, and inherits neither keys nor conversations nor Agents.

use std::time::Duration;

use sqlx::Row;
use time::OffsetDateTime;
use uuid::Uuid;

use super::transaction::transaction;
use super::{Actor, Notice, Store, StoreError};
use crate::turn::keys::ConversationId;

/// Who erases what a former namespace left, in the audit.
const ACTOR: &str = "lastword: the namespace was made again";
/// For so long gateways may go by keys and Agents that they have read before: what they arm in that time is erased, too.
const REMEMBERED: Duration = Duration::from_secs(5);
/// The most conversations that one call erases.
const BATCH: i64 = 100;

/// What an organization is to a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrganizationTie {
    /// It is this namespace, and nothing of another one is left in it.
    Ready,
    /// It is this namespace from now on; what a former one of the name left is yet to be removed.
    NotEmptied,
    /// It is a namespace that was made later: this one is gone.
    Late,
}

impl Store {
    /// Ties an organization to the namespace of this UID, which was `created` at this time of the API server's. If it was
    /// another one, that one's keys are revoked and its Agents removed in the same transaction.
    pub async fn tie_organization(
        &self,
        name: &str,
        uid: &str,
        created: OffsetDateTime,
    ) -> Result<OrganizationTie, StoreError> {
        let (tie, changed) = transaction!(self.general, |tx| {
            sqlx::query(
                "INSERT INTO organization (name, namespace_uid, namespace_created) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO NOTHING",
            )
            .bind(name)
            .bind(uid)
            .bind(created)
            .execute(&mut *tx)
            .await?;
            let row = sqlx::query(
                "SELECT namespace_uid = $2 AS same, namespace_created > $3 AS late, emptied FROM organization
                 WHERE name = $1 FOR UPDATE",
            )
            .bind(name)
            .bind(uid)
            .bind(created)
            .fetch_one(&mut *tx)
            .await?;
            if row.try_get("same")? {
                let emptied: bool = row.try_get("emptied")?;
                return Ok((if emptied { OrganizationTie::Ready } else { OrganizationTie::NotEmptied }, false));
            }
            if row.try_get("late")? {
                return Ok((OrganizationTie::Late, false));
            }
            sqlx::query(
                "UPDATE organization SET namespace_uid = $2, namespace_created = $3, tied_at = clock_timestamp(), emptied = false
                 WHERE name = $1",
            )
            .bind(name)
            .bind(uid)
            .bind(created)
            .execute(&mut *tx)
            .await?;
            for statement in [
                "UPDATE api_key SET revoked_at = clock_timestamp() WHERE organization = $1 AND revoked_at IS NULL",
                "UPDATE agent SET deleted_at = clock_timestamp()
                 WHERE namespace = $1 AND uid IS NOT NULL AND deleted_at IS NULL",
            ] {
                sqlx::query(statement).bind(name).execute(&mut *tx).await?;
            }
            Ok((OrganizationTie::NotEmptied, true))
        })
        .await?;
        if changed {
            self.notices.send(Notice::Keys);
            self.notices.send(Notice::Agents);
        }
        Ok(tie)
    }

    /// The organizations that are tied to a namespace.
    pub async fn tied_organizations(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT name FROM organization ORDER BY name").fetch_all(&self.general).await?)
    }

    /// Erases conversations that former namespaces left, some of each organization; answers whether there are more. No Agent of
    /// a namespace is served before its organization is emptied, so all that there is was left by a former one.
    pub async fn empty_organizations(&self) -> Result<bool, StoreError> {
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM organization WHERE NOT emptied ORDER BY tied_at")
            .fetch_all(&self.general)
            .await?;
        let mut more = false;
        for name in names {
            let left: Vec<Uuid> =
                sqlx::query_scalar("SELECT id FROM conversation WHERE organization = $1 ORDER BY owner, name LIMIT $2")
                    .bind(&name)
                    .bind(BATCH)
                    .fetch_all(&self.general)
                    .await?;
            for id in &left {
                let actor = Actor { organization: &name, user: ACTOR, key: None };
                self.erase_conversation(ConversationId(*id), actor).await?;
            }
            more |= left.len() as i64 == BATCH;
            if left.is_empty() {
                sqlx::query(
                    "UPDATE organization SET emptied = true
                     WHERE name = $1 AND tied_at < statement_timestamp() - make_interval(secs => $2)",
                )
                .bind(&name)
                .bind(REMEMBERED.as_secs_f64())
                .execute(&self.general)
                .await?;
            }
        }
        Ok(more)
    }
}
