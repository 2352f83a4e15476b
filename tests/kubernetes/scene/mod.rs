//! What the rows play on: the cluster, a namespace each, agents, turns that are watched, and faults.

pub mod agents;
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

use std::time::Duration;

use crate::support::wait::eventually_within;

/// The longest that anything takes which a row waits for, unless it says otherwise: pods start and end meanwhile.
pub const BOUND: Duration = Duration::from_secs(90);

/// Looks again and again, within [`BOUND`], until there is something.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T, String>) -> T {
    eventually_within(BOUND, what, look).await
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

/// Whether the long forms of the rows are wanted (`LASTWORD_LONG=1`).
pub fn long() -> bool {
    std::env::var_os("LASTWORD_LONG").is_some()
}
