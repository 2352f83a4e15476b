//! An embedded Postgres: a real server, fetched once, run by this process, reached by a Unix socket only.
//!
//! What holds:
//! - One process serves a data directory; a second one gets an error that names the first ([`PostgresError::Locked`]).
//! - The server ends when this process does, however it ends: it is stopped by [`Embedded::stop`], or by a drop, or, after a
//!   SIGKILL of this process, by the parent-death signal, at which it shuts down cleanly.
//! - What was committed survives all of these, and a SIGKILL of both, unless the cluster is ephemeral.
//! - No other user of the machine can connect: it listens to no TCP port, and its socket lies in a directory of mode 0700.
//! - It works for root too, whom Postgres refuses: the server then runs as another user (see `user`).
//!
//! A *cluster* is, in Postgres' words, the directory of a server's databases. The parts: `archive` finds the programs,
//! `directory` locks and lays out the data directory, `user` decides as whom the programs run, `process` holds one that runs,
//! `supervise` makes a cluster and starts its server, [`Embedded`] is what others hold.

mod archive;
mod directory;
mod embedded;
mod error;
mod options;
mod process;
mod supervise;
mod user;

pub use embedded::{Embedded, Shutdown, running};
pub use error::PostgresError;
pub use options::{Options, Version};
