//! The controller of Agents. It copies their specs into the database, so that gateways need no API server, and writes their
//! status: whether an Agent is ready, how many workers and turns it has, and its latest failure.
//!
//! - The database keeps the last good spec: a spec that cannot be used makes the Agent not `Ready` and changes nothing
//!   else.
//! - `Ready` is the API server's answer to a dry run of the pod that a worker would run in ([`ready`]). The dry run is made
//!   when the spec changed, and again some time after it was refused.
//! - An Agent that a complete list lacks is removed from the database, unless it was written after that list began.
//! - Only the leader runs this. A new leader begins with a fresh list.
//!
//! [`controller`] is the loop; [`tracked`] decides (pure) what is to be done for one Agent; [`ready`] and [`status`] carry
//! it out.

mod controller;
mod ready;
mod status;
mod tracked;

pub use controller::{AgentContext, run};
