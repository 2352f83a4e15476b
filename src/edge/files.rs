//! How many files the process may have open. Each connection is one; when there are no more, Postgres cannot be connected to
//! either, so strangers who open connections must not get all of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are kept for everything that is no connection of a client or a worker: the database, workers' pipes, logs,
/// requests to others.
const KEPT: usize = 512;

/// Raises the soft limit to the hard one. Many systems have the soft limit at 1,024 for old programs' sake; so this is for
/// processes that start no programs, which would inherit it.
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the number of open files was not raised ({error})");
    }
}

/// The number of connections that a port may have: `wished`, or less where `ports` of them would use up the files that this
/// process may open. That is warned about, with the flag that the wish came from.
pub fn affordable_connections(wished: usize, ports: usize, flag: &str) -> usize {
    let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let affordable = affordable(files, ports);
    if affordable < wished {
        tracing::info!(
            "{affordable} connections a port in place of {wished} ({flag}), since this process may open {files} files \
             (ulimit -n)"
        );
    }
    wished.min(affordable)
}

/// How many connections each of the ports may have with this many files. With few files, half of them are kept.
fn affordable(files: usize, ports: usize) -> usize {
    (files - KEPT.min(files / 2)) / ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(affordable(20_000, 2), 9744);
        assert_eq!(affordable(1024, 2), 256);
        assert_eq!(affordable(256, 2), 64, "few files are halved");
        assert!(affordable(usize::MAX, 2) > 1_000_000);
    }
}
