//! Lastword on a real Kubernetes: pods that really die, nodes that really go, an API server that is really away.
//!
//! `tests/kubernetes/run` brings the cluster up, installs the chart, and runs these rows: `parallel` ones each in a namespace
//! of its own, all at once; `serial` ones, which take away what others stand on, one after the other. Without
//! `LASTWORD_KUBERNETES` every row is skipped loudly.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the target `machine` uses all of it")]
mod support;

#[expect(dead_code, reason = "the crate's own tests use the rest")]
mod fields;
mod parallel;
mod scene;
mod serial;
