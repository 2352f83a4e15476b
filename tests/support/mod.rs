//! What the three test targets share. `tests/machine` uses all of it, so that the compiler finds there what nobody uses any
//! more; the others say that they use a part.
//!
//! - [`wait`]: the one way to wait for something, with a bound.
//! - [`db`]: a real Postgres for the whole process, and a fresh database for each test.
//! - [`actors`]: those who act on a store directly. [`gateway`], [`client`] and [`fake_worker`]: those who speak HTTP, with
//!   gateways inside this process. [`dev`] and [`api`]: `lastword dev` as a process of its own, and its client;
//!   [`chat`]: a turn of that client.
//! - [`node`]: public client libraries of npm; [`program`]: a client as a program of its own.
//! - [`forwarder`]: a network between a test and its Postgres, which can be cut.
//! - [`pgbouncer`]: a pooler in front of a test's Postgres.
//! - [`issuer`]: a real OpenID Connect issuer.
//! - [`http`], [`model`] and [`process`]: small servers on loopback, a model server by script, and other processes.

pub mod actors;
pub mod api;
pub mod chat;
pub mod client;
pub mod db;
pub mod dev;
pub mod fake_worker;
pub mod forwarder;
pub mod gateway;
pub mod http;
pub mod issuer;
pub mod model;
pub mod node;
pub mod pgbouncer;
pub mod process;
pub mod program;
pub mod wait;

use std::io::Write;
use std::path::{Path, PathBuf};

pub use db::Db;

/// The built binary.
pub const LASTWORD: &str = env!("CARGO_BIN_EXE_lastword");

/// A file of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Chooses the cryptography of TLS for this process; another test may have been first.
pub fn crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A seed for this run's randomness: printed, and taken from `LASTWORD_TEST_SEED` to repeat a run.
pub fn seed() -> u64 {
    let seed = count("LASTWORD_TEST_SEED").unwrap_or_else(rand::random);
    println!("LASTWORD_TEST_SEED={seed}");
    seed
}

/// A number from the environment, for what can be repeated or made larger.
pub fn count<N: std::str::FromStr>(variable: &str) -> Option<N> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Tells loudly that a test cannot run here; where CI promises that it can, that is a failure.
pub fn skipped(why: &str) {
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI must not skip: {why}");
    left_out(why);
}

/// Tells loudly that a test was left out, as it is unless somebody asks for it.
pub fn left_out(why: &str) {
    // Not by `println!`, which the harness keeps to itself unless the test fails; `tests/run` counts these lines.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {why}");
}

/// The interpreter that has the public client libraries, which are installed if need be; `None` is told as a skip of `what`.
pub fn python_clients(what: &str) -> Option<PathBuf> {
    let installed = std::process::Command::new(repository("scripts/python-clients")).status();
    if installed.is_ok_and(|status| status.success()) {
        return Some(repository(".cache/python/bin/python"));
    }
    skipped(&format!("the public client libraries cannot be installed, so {what}"));
    None
}
