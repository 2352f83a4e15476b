//! The worker port: the server of the worker protocol (`docs/worker-protocol.md`), and of replicas that follow a turn here.

mod endpoint;
pub mod identity;
mod peers;
mod stops;

pub use endpoint::{SUSPICION_GRACE, WorkerPort};
