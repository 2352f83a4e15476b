//! What the rows share: the cluster, a namespace each, agents, turns that are watched, and faults.

pub mod agents;
#[path = "../../support/api.rs"]
#[allow(dead_code, reason = "shared with other targets")]
pub mod api;
pub mod cluster;
pub mod faults;
pub mod follow;
pub mod jwt;
pub mod news;
pub mod notebook;
pub mod place;
pub mod processes;
pub mod times;
pub mod turns;

use std::time::{Duration, Instant};

/// The longest that anything takes which a row waits for, unless it says otherwise. Generous: cores are shared.
pub const BOUND: Duration = Duration::from_secs(90);

/// Between two looks.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Looks again and again until there is something; panics with what the last look saw.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(BOUND, what, look).await
}

/// The same, with a bound of its own.
pub async fn within<T>(bound: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    let mut seen = String::from("nothing yet");
    while begun.elapsed() < bound {
        // A look that hangs (a server that is stopped) is given up with the rest.
        match tokio::time::timeout(bound, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(other)) => seen = other,
            Err(_) => seen = format!("a look that took longer than {bound:?}"),
        }
        pause().await;
    }
    panic!("not within {bound:?}: {what}; seen: {seen}");
}

/// Runs a program, with what it says; panics when it fails.
pub async fn command(program: &str, arguments: &[&str]) -> String {
    match try_command(program, arguments).await {
        Ok(said) => said,
        Err(why) => panic!("{why}"),
    }
}

/// Runs a program to its end; its standard output, or how it failed.
pub async fn try_command(program: &str, arguments: &[&str]) -> Result<String, String> {
    let ran = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let ran = ran.map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    match ran.status.success() {
        true => Ok(said),
        false => {
            Err(format!("{program} {arguments:?}: {}: {said}{}", ran.status, String::from_utf8_lossy(&ran.stderr)))
        }
    }
}

/// Tells loudly that a row cannot run here; where CI promises that it can, that is a failure.
pub fn skipped(why: &str) {
    println!("SKIPPED: {why}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI must not skip: {why}");
}

/// Whether the long forms of the rows are wanted (`LASTWORD_LONG=1`).
pub fn long() -> bool {
    std::env::var_os("LASTWORD_LONG").is_some()
}

/// A count from the environment, for rows that can be made larger.
pub fn count(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
