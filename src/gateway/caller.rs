//! The authenticated caller of a request, and what it may see.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Gateway;
use crate::problem::Problem;
use crate::store::keys::{KeyRole, Principal};
use crate::store::{Actor, TicketHolder};

/// By what a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// Nothing: under `--auth none` whoever runs the gateway is known without.
    OfThisMachine,
    /// The API key of this id.
    Key(Uuid),
    /// A token of the OIDC issuer, which ends at this time of the database's clock.
    Token { expires_at: OffsetDateTime },
}

/// Whoever shows a ticket is known by what it was asked for with.
impl From<TicketHolder> for KnownBy {
    fn from(holder: TicketHolder) -> Self {
        match holder {
            TicketHolder { key: Some(key), .. } => KnownBy::Key(key),
            TicketHolder { until: Some(expires_at), .. } => KnownBy::Token { expires_at },
            TicketHolder { key: None, until: None } => KnownBy::OfThisMachine,
        }
    }
}

impl From<KnownBy> for TicketHolder {
    fn from(known_by: KnownBy) -> Self {
        match known_by {
            KnownBy::OfThisMachine => TicketHolder::default(),
            KnownBy::Key(key) => TicketHolder { key: Some(key), until: None },
            KnownBy::Token { expires_at } => TicketHolder { key: None, until: Some(expires_at) },
        }
    }
}

/// Who calls, and by what it is known.
pub struct ApiCaller {
    pub principal: Principal,
    pub known_by: KnownBy,
}

impl ApiCaller {
    /// Whether the caller may see what this user of this organization owns.
    pub fn sees(&self, organization: &str, owner: &str) -> bool {
        self.principal.organization == organization && (self.principal.user == owner || self.is_operator())
    }

    /// How the audit names it.
    pub fn actor(&self) -> Actor<'_> {
        let key = match self.known_by {
            KnownBy::Key(key) => Some(key),
            KnownBy::OfThisMachine | KnownBy::Token { .. } => None,
        };
        Actor { organization: &self.principal.organization, user: &self.principal.user, key }
    }

    /// Whose room its bodies take: its principal's, which may have several keys.
    pub fn account(&self) -> String {
        // No name holds a line break.
        format!("{}\n{}", self.principal.organization, self.principal.user)
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
        if parts.method == Method::POST && !is_json(&parts.headers) && !is_bodiless_of_openai(parts) {
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json, with any POST"));
        }
        Ok(caller)
    }
}

/// Whether a request without a body is one of those that OpenAI's libraries send so. They do not say what the body would be. Of
/// another origin, a script's request without a body needs no preflight; it is refused for its origin (`origin.rs`).
fn is_bodiless_of_openai(parts: &Parts) -> bool {
    let headers = &parts.headers;
    let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0")
        && [header::TRANSFER_ENCODING, header::CONTENT_TYPE].iter().all(|name| !headers.contains_key(name));
    empty && parts.uri.path().starts_with("/openai/v1/responses/")
}

/// Whether a request says that it carries JSON. A form of a web page cannot say so: of another origin, its script may only
/// after a preflight request, which is never granted. So this holds for a POST without a body, too.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.and_then(|v| v.split(';').next()).is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}
