//! # Lastword: every agent turn gets exactly one last word
//!
//! A *turn* is one message that a person sends to an AI agent. Agents run as processes and pods that crash, hang or never
//! start; gateways die while they hold a person's stream; databases fail over. Whatever happens, the person's client is
//! shown exactly one terminal event: the reply, or an error that says why there is none.
//!
//! A row of the database, the *marker*, says that a turn still owes its terminal. Whoever deletes the marker has won the
//! *election* and writes the terminal in the same transaction: so there is always one, and never a second. All other code
//! notices failures early, and carries terminals to the clients that wait.
//!
//! ## Where to find what
//!
//! | step of a turn | where |
//! |---|---|
//! | a message comes in | [`gateway`], [`submit`]; guardrails in [`guard`] |
//! | it is armed: turn and marker are committed | [`store`], file `arm` |
//! | a worker is started where none is there | [`fleet`]; in Kubernetes, pods by [`operator`] |
//! | a worker claims it, and its output is shown | [`dispatch`], [`worker_port`], [`stream`] |
//! | a program or a model answers | [`worker`] |
//! | it ends | [`store`], files `finish`, `fail_start`, `fail_worker`, `fail_turn`, `sweep` and `elect` |
//! | its terminal is shown | [`stream`]; webhooks and Slack in [`post`]; an AgentTurn's status by [`operator`] |
//!
//! [`roles`] has the processes that there are, [`cli`] the commands for people, [`turn`] the pure part: values and decisions
//! without IO. `ARCHITECTURE.md` draws the states of a marker and of a lease, and walks through whole turns.
//!
//! ## What always holds
//!
//! - Only [`store`] writes SQL, and only its file `elect` deletes markers and inserts terminals.
//! - Only [`operator`], [`crd`] and the [`roles`] that wire them know kube.
//! - [`turn`] knows no clock and no IO. Deadlines are compared by the database's clock.
//! - A notice between replicas is a hint: whoever waits for one also polls. Streams read by cursor, so a lost notice costs
//!   time, never a frame.
//! - Only proof kills a worker at once: a reaped process, a terminated container. Silence is judged by the sweep, and by no
//!   sweep right after an outage.
//! - A file or folder of `src/` may use only those of lower floors. `architecture.rs` lists the floors and tests it.

pub mod admin;
pub mod agents;
pub mod backoff;
pub mod child;
pub mod cli;
pub mod crd;
pub mod dispatch;
pub mod edge;
pub mod egress;
pub mod event_stream;
pub mod every;
pub mod fleet;
pub mod gateway;
pub mod guard;
pub mod heartbeat;
mod ids;
pub mod leadership;
pub mod lines;
pub mod local;
pub mod metrics;
pub mod operator;
pub mod post;
pub mod private;
pub mod problem;
pub mod roles;
pub mod secrets;
pub mod store;
pub mod stream;
pub mod submit;
pub mod sweep;
pub mod telemetry;
pub mod tls;
pub mod turn;
pub mod utf8;
pub mod wire;
pub mod worker;
pub mod worker_port;

#[cfg(test)]
mod architecture;
