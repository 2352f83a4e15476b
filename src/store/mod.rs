//! All SQL, a file a verb or a few verbs of one subject. Nothing outside this module knows sqlx.
//!
//! # How a verb is written
//!
//! - A transaction that holds locks waits for nothing but Postgres. Locks are taken in key order. Whatever is read under a
//!   lock is read by a statement of its own behind the locking one, because a statement's snapshot is taken when it begins:
//!   it would not show what others committed while it waited for the lock.
//! - `arm`, `claim`, `finish` and `append_output` are batched (see [`batch`]): all calls that wait go into one transaction.
//! - Everything has a deadline (see [`pool`]): a network that falls silent holds nobody.
//! - Terminals and heartbeats have connections of their own ([`Store::vital`]), so that no load of submits or reads can
//!   starve them.
//! - Time is the database's: `clock_timestamp()` to write, `statement_timestamp()` to compare.
//! - After an error in or behind a COMMIT nobody knows whether it happened. Such an error is [`StoreError::Unavailable`],
//!   and every verb can be called again with the same keys.
//! - A verb that can be refused has one error type with all of its causes, the database's among them ([`ArmError`],
//!   [`FinishError`]).
//!
//! How a turn ends, which is the heart of it, is explained in [`elect`].

mod agent;
mod agent_turn;
mod append;
mod arm;
mod audit;
mod batch;
mod claim;
mod connection;
mod conversation;
mod conversation_list;
mod deliver;
mod demand;
mod elect;
mod erase;
mod error;
mod exchange;
mod fail_start;
mod fail_turn;
mod fail_worker;
mod finish;
mod gate;
mod guard;
mod heartbeat;
pub mod keys;
mod lease;
pub mod login;
mod metrics;
mod notify;
mod opaque;
mod organization;
mod phase;
mod pod;
mod pool;
mod post;
mod principal;
pub mod probe;
mod recent_failures;
mod record;
mod recorded_log;
mod replica;
mod request;
mod retention;
mod route;
mod schema;
pub mod server;
mod session;
mod silence;
mod stop;
mod sweep;
mod ticket;
mod transaction;
mod turn_view;

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;

pub use agent::{AgentCounts, StoredAgent};
pub use agent_turn::{AgentTurnProgress, AgentTurnRef, AgentTurnState, AgentTurnTie, MAX_STATUS_TEXT};
pub use append::{Append, AppendError};
pub use arm::{Arm, ArmError, Armed};
pub use audit::{Actor, Audited};
pub use claim::{ClaimFor, ClaimOrder, Claimed};
pub use conversation::Conversation;
pub use conversation_list::{ListedConversation, NewestTurn};
pub use deliver::DueDelivery;
pub use demand::WorkerGroupDemand;
pub use elect::Ended;
pub use erase::ErasedConversation;
pub use error::StoreError;
pub use exchange::CredentialExchange;
pub use fail_worker::FailedWorker;
pub use finish::{FinishError, WorkerWord};
pub use gate::GateState;
pub use guard::GuardedTurn;
pub use heartbeat::{Beat, BeatAnswer, WorkerState};
pub use lease::{ConnectError, Connected, Lease, NewStart};
pub use metrics::StoreMetrics;
pub use notify::{Heard, Hearing, Notice};
pub use organization::OrganizationTie;
pub use pod::RecordedPod;
pub use pool::Pool;
pub use post::{DuePost, PostPlace};
pub use principal::{Backlog, PrincipalLimits};
pub use recent_failures::{FutileStarts, RecentFailure};
pub use record::{ListFilter, Record, RecordedReply};
pub use recorded_log::RecordedTools;
pub use replica::Replica;
pub use request::{AlikeRequest, TurnRequest};
pub use retention::Retention;
pub use route::{DatabaseReach, Pooler};
pub use schema::MIN_POSTGRES;
pub use server::ConnectOptions;
pub use session::OtherSession;
pub use sweep::Swept;
pub use ticket::{MAX_TICKETS, TICKET_SECONDS, Ticket, TicketHolder};
pub(crate) use turn_view::MAX_VIEWED;
pub use turn_view::{GoneReply, Terminal, TurnHead, TurnView};

use batch::Batcher;
use route::Route;

/// Sizes of the pools; the sum is what one replica takes of `max_connections`.
#[derive(Debug, Clone, Copy)]
pub struct PoolSizes {
    /// Connections for submits, reads and output. A third of them, one at the least, is for reads by key.
    pub general: u32,
    /// Connections for terminals, heartbeats and sweeps.
    pub vital: u32,
}

impl Default for PoolSizes {
    fn default() -> Self {
        PoolSizes { general: 12, vital: 6 }
    }
}

/// The store: every read and write of Lastword's state in Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    general: Pool,
    /// For reads by primary key, which every stream makes for each turn. To plan such a read would be most of what it
    /// costs, so on these connections plans are kept.
    keyed: Pool,
    vital: Pool,
    arm: Batcher<arm::ArmVerb>,
    claim: Batcher<claim::ClaimVerb>,
    finish: Batcher<finish::FinishVerb>,
    output: Batcher<append::AppendVerb>,
    options: Arc<PgConnectOptions>,
    /// The way past a pooler.
    direct: Option<Arc<PgConnectOptions>>,
    notices: notify::NoticeSender,
}

impl Store {
    /// A store whose database is never there.
    #[cfg(test)]
    pub fn away() -> Self {
        Self::open(PgConnectOptions::new().host("127.0.0.1").port(1), PoolSizes::default())
    }

    /// Opens the pools lazily: a database that is away now is found later. Must be called inside a Tokio runtime.
    pub fn open(options: PgConnectOptions, sizes: PoolSizes) -> Self {
        Self::reach(options, sizes, DatabaseReach::default())
    }

    /// [`Store::open`] for a database of which it is known how connections reach it.
    pub fn reach(options: PgConnectOptions, sizes: PoolSizes, reach: DatabaseReach) -> Self {
        // Here plans are kept. They go by primary keys, which serve tables of any size, and never by a scan, which seems to
        // cost nothing while a table is empty.
        let keep = [("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off")];
        let way = pool::way(reach.pooler);
        let keyed = (sizes.general / 3).max(1);
        let general = Pool::open((sizes.general - keyed).max(1), options.clone(), &[], way.clone());
        let keyed = Pool::open(keyed, options.clone(), &keep, way.clone());
        let vital = Pool::open(sizes.vital, options.clone(), &[], way);
        Store {
            arm: Batcher::start(general.clone(), arm::ArmVerb),
            claim: Batcher::start(general.clone(), claim::ClaimVerb),
            finish: Batcher::start(vital.clone(), finish::FinishVerb),
            output: Batcher::start(general.clone(), append::AppendVerb),
            notices: notify::NoticeSender::start(general.clone()),
            options: Arc::new(options),
            direct: reach.direct.map(Arc::from),
            general,
            keyed,
            vital,
        }
    }

    /// The pool that terminals, heartbeats and sweeps have for themselves.
    fn vital(&self) -> &Pool {
        &self.vital
    }

    /// The pool that [`keys`] takes, which needs nothing but the table of API keys.
    pub fn pool(&self) -> &Pool {
        &self.general
    }

    /// How to open a session of its own. `None`: the database is behind a pooler, and no way past it is known.
    async fn session_options(&self) -> Result<Option<PgConnectOptions>, StoreError> {
        if let Some(direct) = &self.direct {
            return Ok(Some(route::plain((**direct).clone())));
        }
        Ok(match self.general.route().await? {
            Route::Sessions => Some(route::session((*self.options).clone())),
            Route::Transactions => None,
        })
    }

    /// Asks the database whether it is there, in one cheap round trip.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.general).await?;
        Ok(())
    }

    /// Closes the pools; calls that are under way finish.
    pub async fn close(&self) {
        self.general.close().await;
        self.keyed.close().await;
        self.vital.close().await;
    }
}
