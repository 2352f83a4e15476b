//! Child processes: workers on one machine, the programs that workers run, the embedded Postgres.
//!
//! - [`spawn`] starts them so that none outlives this process, however it ends.
//! - [`process`] signals one without ever reaching another program, and notices and reaps its end.
//! - [`keeper`] keeps a program together with all that it starts: nothing of it is left when the program's turn is over.
//! - [`ours`] knows which children this process started itself, and ends and reaps those that it got without asking.
//! - [`output`] copies what one prints to our log, and keeps the end of its stderr.
//! - [`cgroup`] bounds the memory of one, and tells whether the kernel killed it for that.

pub mod cgroup;
mod descendants;
pub mod keeper;
pub mod ours;
pub mod output;
pub mod process;
pub mod spawn;
