//! Worker pods and AgentTurns without a cluster: how a pod shows who it is, and what the watches make of an API server that
//! forgets, lies or goes away. The pods themselves are played; everything else is real.

mod api_server;
mod leader;
mod lease;
mod runtime;
mod session;
mod turns;
mod watch;

use lastword::store::NewStart;

/// The pod of every start here.
pub const POD: &str = "default/bot-1";
pub const UID: &str = "uid-1";

/// A start is a pod's.
pub fn kubernetes(start: &mut NewStart) {
    start.runtime = "kubernetes";
    start.runtime_ref = POD.into();
}
