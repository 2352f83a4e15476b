//! The authenticated caller of a request, and what it may see.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use uuid::Uuid;

use super::Gateway;
use crate::problem::Problem;
use crate::store::keys::{KeyRole, Principal};

/// Who calls, and by which key.
pub struct ApiCaller {
    pub principal: Principal,
    /// The id of the API key that was shown; none under `--auth none`.
    pub key: Option<Uuid>,
}

impl ApiCaller {
    /// Whether the caller may see what this user of this organization owns.
    pub fn sees(&self, organization: &str, owner: &str) -> bool {
        self.principal.organization == organization && (self.principal.user == owner || self.is_operator())
    }

    /// Whether the caller may see everything of the organization.
    pub fn is_operator(&self) -> bool {
        self.principal.role == KeyRole::Operator
    }
}

impl FromRequestParts<Gateway> for ApiCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let caller = gateway.auth.caller(parts).await?;
        gateway.counters.count_request(&caller.principal, parts)?;
        Ok(caller)
    }
}
