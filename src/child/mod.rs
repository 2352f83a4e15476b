//! Child processes: workers on one machine, the programs that workers run, the embedded Postgres.
//!
//! - [`spawn`] starts them so that none outlives this process, however it ends.
//! - [`process`] signals one without ever reaching another program, and notices and reaps its end.
//! - [`output`] copies what one prints to our log, and keeps the end of its stderr.
//! - [`cgroup`] bounds the memory of one, and tells whether the kernel killed it for that.

pub mod cgroup;
pub mod output;
pub mod process;
pub mod spawn;
