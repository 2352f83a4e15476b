//! The gateway: serves clients on one port and workers on another.
//!
//! Every replica serves every client and every worker: what ties a stream to a replica is only that it is connected there.
//!
//! | file | holds |
//! |---|---|
//! | `args`, `config` | flags, and the configuration that they make |
//! | `wiring` | [`run`]: makes the parts of a gateway, starts its background loops, serves both ports |
//! | `serve` | one port: connections, TLS, time limits, errors as problem details |
//! | `router` | the client port's routes, merged from those of each dialect |
//! | `auth`, `caller` | API keys, and who calls |
//! | `limits` | what one principal may do: requests a second, streams |
//! | `api/` | Lastword's own client API (`docs/api.md`), a file an area of it |
//! | `notices` | what this gateway does when something changed elsewhere |
//!
//! A *dialect* is one client protocol. Lastword's own API is in `api/`; each further one (AG-UI, OpenAI, the UI message
//! stream) is to get a folder beside it with its own `router()`, which `router.rs` merges. Today the frames of
//! Lastword's own API are made in [`crate::stream`], so that comes first: CONTRIBUTING.md says what has to move.

mod api;
pub mod args;
pub mod auth;
mod caller;
mod config;
mod limits;
mod notices;
mod router;
mod serve;
mod wiring;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::agents::Agents;
use crate::dispatch::workers::Workers;
use crate::store::Store;
use crate::stream::session::Streams;
use crate::submit::Submitter;
pub use auth::{Auth, AuthMode};
pub use config::{GatewayConfig, WorkerTls};
pub use limits::PrincipalQuotas;
pub use wiring::{GatewayError, Listeners, run};

/// What the handlers of the client port work with.
#[derive(Clone)]
pub struct Gateway {
    pub store: Store,
    pub auth: Auth,
    pub agents: Agents,
    pub submitter: Submitter,
    pub streams: Streams,
    pub workers: Workers,
    /// One permit for each SSE stream that may be open.
    pub open_streams: Arc<Semaphore>,
    /// What principals do here, and may.
    pub counters: limits::PrincipalCounters,
}
