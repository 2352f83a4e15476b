//! Worker pods: built from an Agent's template, created, watched and deleted.
//!
//! ```text
//!  fleet ─▶ runtime ─▶ API server: create, get, delete         (the leader alone)
//!                           │ watch (every replica)
//!                           ▼
//!  cache of pods ─▶ observe ─▶ classify (pure) ─▶ Death ─▶ the fleet's reports
//!        │                                     └▶ the lease row: why the pod stops, why it does not start
//!        └▶ cleanup: deletes ended pods; some stay a while for their logs  (the leader alone)
//! ```
//!
//! - [`build`], [`classify`], [`draft`] and the choice of what [`cleanup`] deletes are pure.
//! - No conclusion is ever drawn from a pod's absence in a list: the list may be old, and the watch may have been
//!   interrupted. Proof is a terminated container of that very pod.
//! - The lease row names its pod by name and UID, and that alone says whose pod it is. Labels and annotations, which others
//!   may write, only help to find the pod.

pub mod build;
mod cache;
pub mod classify;
mod cleanup;
mod create;
pub mod draft;
mod names;
mod observe;
mod runtime;
mod secure;
mod watch;

pub use cache::Pods;
pub use create::create;
pub use runtime::PodRuntime;
