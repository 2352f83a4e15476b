//! The gateway: serves clients on one port and workers on another.
//!
//! Every replica serves every client and every worker: what ties a stream to a replica is only that it is connected there.
//!
//! | file | holds |
//! |---|---|
//! | `args`, `config` | flags, and the configuration that they make |
//! | `wiring` | [`run`]: makes the parts of a gateway, starts its background loops, serves both ports |
//! | `router` | the client port's routes, merged from those of each dialect |
//! | `origin`, `cors` | which hosts and which web pages are answered; what browsers are told of it |
//! | `page/` | the web page at `/`, and its logins |
//! | `auth`, `known_keys`, `caller` | who calls, and what is known of API keys |
//! | `oidc/` | callers who show a token of an OpenID Connect issuer in place of a key |
//! | `ticket`, `cookie` | what stands for a key: in a stream's URL, and in a browser that is logged in |
//! | `limits` | what one principal may do: requests a second, streams |
//! | `audit` | which reads of operators are written down |
//! | `conversations` | which conversation a name or an id means |
//! | `messages` | a client's message becomes a turn |
//! | `open_streams` | the body of a client's stream: its places, and what cuts it |
//! | `api/` | Lastword's own client API (`docs/api.md`), a file an area of it |
//! | `dialects/` | other people's client protocols, a file or folder each |
//! | `notices` | what this gateway does when something changed elsewhere |
//!
//! A *dialect* is one client protocol. Lastword's own is in `api/`, and the rest are in `dialects/`.

mod api;
pub mod args;
mod audit;
pub mod auth;
mod caller;
mod config;
mod conversations;
mod cookie;
mod cors;
mod dialects;
mod known_keys;
mod limits;
mod messages;
mod notices;
mod oidc;
mod open_streams;
mod origin;
mod page;
mod router;
mod ticket;
mod wiring;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::agents::Agents;
use crate::dispatch::workers::Workers;
use crate::edge::bodies::Bodies;
use crate::store::Store;
use crate::stream::session::Streams;
use crate::submit::Submitter;
use audit::ReadAudit;
pub use auth::{Auth, AuthMode};
pub use config::{GatewayConfig, WorkerTls};
pub use limits::PrincipalQuotas;
pub use oidc::{ClaimMapping, ClaimName, IssuerId, OidcConfig, OperatorClaim, TokenOrganization};
pub use origin::{AllowedOrigin, ServedHost};
pub use wiring::{GatewayError, Listeners, run};

/// What the handlers of the client port work with.
#[derive(Clone)]
pub struct Gateway {
    pub store: Store,
    pub auth: Auth,
    pub(in crate::gateway) audit: ReadAudit,
    pub agents: Agents,
    pub submitter: Submitter,
    pub streams: Streams,
    pub workers: Workers,
    /// One permit for each SSE stream that may be open.
    pub open_streams: Arc<Semaphore>,
    /// What principals do here, and may.
    pub counters: limits::PrincipalCounters,
    /// The room for what clients send.
    pub bodies: Bodies,
}
