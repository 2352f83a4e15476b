//! Gateway replicas, as they know each other.

use uuid::Uuid;

use super::{Store, StoreError};
use crate::turn::keys::{GatewayId, Incarnation};

/// A gateway replica, as the others know it.
#[derive(Clone, PartialEq, Eq)]
pub struct Replica {
    pub id: GatewayId,
    /// Base URL of its worker port.
    pub url: String,
    /// What others show to follow a turn there.
    pub secret: String,
}

impl Replica {
    /// A replica that has just started: with a new id and a new secret.
    pub fn new(url: String) -> Self {
        let secret: [u8; 32] = rand::random();
        Replica { id: GatewayId::new(), url, secret: crate::turn::keys::hex(&secret) }
    }
}

impl Store {
    /// The replica that holds a worker's stream, if that replica lives.
    pub async fn replica_of_worker(&self, worker: Incarnation) -> Result<Option<Replica>, StoreError> {
        let row: Option<(Uuid, String, String)> = sqlx::query_as(
            "SELECT g.id, g.url, g.secret FROM lease l JOIN gateway g ON g.id = l.gateway
             WHERE l.incarnation = $1 AND l.phase <> 'dead' AND g.expires_at > statement_timestamp()",
        )
        .bind(worker.0)
        .fetch_optional(&self.general)
        .await?;
        Ok(row.map(|(id, url, secret)| Replica { id: GatewayId(id), url, secret }))
    }
}
