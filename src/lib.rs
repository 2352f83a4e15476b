//! # Lastword: every agent turn gets exactly one last word
//!
//! A *turn* is one message that a person sends to an AI agent. Agents run as processes and pods that crash, hang and
//! never start; gateways die with a stream in hand; databases blink. Whatever happens, the person's client is shown
//! exactly one terminal event: the reply, or an error that says why there is none.
//!
//! ## The idea
//!
//! A durable row, the *marker*, says that a turn still owes its terminal. Whoever deletes it has won the *election* and
//! writes the terminal in the same transaction; so there is never none, and never a second. Everything else here notices
//! failures early and carries terminals to the clients that wait.
//!
//! ## A turn's way through the code
//!
//! | step | where | what |
//! |---|---|---|
//! | submit | [`gateway`], [`submit`] | authenticated, checked, armed; guardrails in [`guard`] |
//! | arm | [`store`] `arm.rs` | turn and marker in one transaction |
//! | demand | [`fleet`] | a worker is started where none is there: [`fleet::plan`] decides |
//! | claim | [`store`] `claim.rs`, [`dispatch::workers`] | the marker names a worker's incarnation; then it is pushed |
//! | run | [`worker`] | an adapter runs a program, or asks a model |
//! | output | [`dispatch::live`], [`store`] `output.rs` | shown at once, durable in batches |
//! | finish | [`store`] `finish.rs`, `elect.rs` | the election |
//! | or fail | [`store`] `fail.rs`, `sweep.rs`, [`liveness`] | the same election, by proof or by silence |
//! | deliver | [`deliver`] | sessions pull by cursor; [`deliver::render`] knows what is yet to be shown; [`deliver::platforms`] posts to webhooks and Slack |
//!
//! In Kubernetes, [`operator`] watches Agents, AgentTurns and worker pods; [`roles`] are the processes there are.
//!
//! [`turn`] holds what is decided without IO: cursors, offsets, elections, reasons. [`wire`] is the worker protocol,
//! [`crd`] the custom resources, [`secrets`] where Secrets are read, [`tls`] certificates, [`local`] what one machine needs (Postgres, `dev`), [`cli`] the commands for people.
//!
//! ## What holds
//!
//! - Only [`operator`] and [`crd`] know kube; gateways ask it for one thing, who a pod is ([`operator::review`]).
//! - Only [`store`] knows sqlx. Only `store/elect.rs` deletes markers and inserts terminals.
//! - [`turn`] knows no clock, no IO, no sqlx. Time is the database's.
//! - NOTIFY is a hint: every consumer polls too. Streams pull by cursor, so a lost wake-up costs time, never a frame.
//! - Only proof kills: a reaped process, a terminated container. Silence is judged by the sweep under the settling gate.

pub mod admin;
pub mod agents;
pub mod backoff;
pub mod child;
pub mod cli;
pub mod crd;
pub mod dispatch;
pub mod egress;
pub mod every;
pub mod fleet;
pub mod gateway;
pub mod guard;
pub mod heartbeat;
mod ids;
pub mod leadership;
pub mod lines;
pub mod local;
pub mod operator;
pub mod post;
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
pub mod wire;
pub mod worker;
pub mod worker_port;

#[cfg(test)]
mod architecture;
