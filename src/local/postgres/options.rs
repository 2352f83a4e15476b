//! What embedded Postgres to start, and where.

use std::path::PathBuf;

/// The superuser that owns everything in the server. It has no password: only whoever may enter the socket's directory can
/// connect.
pub(super) const USER: &str = "lastword";
/// The name of the database that every cluster has.
pub(super) const DATABASE: &str = "lastword";

/// A major version of Postgres whose archive is pinned in `archive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The oldest that Lastword runs on.
    V15,
    /// The newest, which a new cluster gets.
    #[default]
    V18,
}

impl Version {
    /// The major version's number, such as 18.
    pub const fn major(self) -> u32 {
        match self {
            Version::V15 => 15,
            Version::V18 => 18,
        }
    }
}

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory, such as `.lastword`; created if it does not exist. `directory` tells what lies in it.
    pub data_dir: PathBuf,
    /// The version of a new cluster. An existing one is served by the version that made it.
    pub version: Version,
    /// A directory with the programs `postgres` and `initdb`. If given, no others are used.
    pub bin_dir: Option<PathBuf>,
    /// The directory in which fetched archives are unpacked; any number of processes may share it.
    pub cache_dir: PathBuf,
    /// The number of connections that the server takes.
    pub max_connections: u32,
    /// For tests: the server does not wait for the disk (`fsync` is off), and the cluster is removed when it is dropped.
    pub ephemeral: bool,
    /// More settings of postgresql.conf, by name and value. They win over ours.
    pub extra_settings: Vec<(String, String)>,
}

impl Options {
    /// A durable cluster below `data_dir`, of the newest version, with 100 connections.
    pub fn new(data_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Options {
        Options {
            data_dir: data_dir.into(),
            version: Version::default(),
            bin_dir: None,
            cache_dir: cache_dir.into(),
            max_connections: 100,
            ephemeral: false,
            extra_settings: Vec::new(),
        }
    }
}
