//! Lastword on one machine, with a real Postgres and real processes: gateways and fleets inside this process, `lastword dev`
//! and workers as processes of their own, and Kubernetes as an API server that is played.
//!
//! Tests run several at a time in one process, so none may change what belongs to the process: its environment, its working
//! directory, its global log. What loads the machine so that others would miss their times is in [`serial`], which `tests/run`
//! runs last, one test at a time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/mod.rs"]
mod support;

mod browser;
mod cli;
mod cut_off;
mod dev;
mod dialects;
mod embedded_postgres;
mod endings;
mod examples;
mod fleet;
mod guardrails;
mod hostile;
mod models;
mod outage;
mod platforms;
mod pods;
mod pooler;
mod programs;
mod proxies;
mod replicas;
mod serial;
mod sessions;
mod telemetry;
mod tenants;
mod worker;
