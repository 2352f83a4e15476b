//! The custom resources, group `lastword.dev`, version `v1alpha1`: their types, schemas and defaults.
//!
//! - [`Agent`]: how an agent is run, limited and reached. In Kubernetes it is an object; on one machine a YAML document, which
//!   [`agents`](crate::agents) checks by the same schema and the same CEL rules as the API server.
//! - [`AgentTurn`]: one turn as an object, for those who drive agents with `kubectl` or a controller of their own.
//!
//! The schema that [`crds`] generates is the only place where the limits of single fields are; [`check_spec`] interprets it.
//! The Rust types themselves ignore unknown fields, so that a controller which is older than the installed CRD (after a
//! rollback, say) still reads every object.
//!
//! The doc comments of the types are the descriptions in the CRDs, which `kubectl explain` shows. So they are written for
//! platform engineers: each says the unit and the default, and the defaults' numbers are held against `turn/defaults.rs` by a
//! test.

mod agent;
mod check;
mod definitions;
mod guardrails;
mod openai;
mod template;
#[expect(clippy::duplicated_attributes, reason = "printer columns share type_")]
mod turn;

pub use crate::turn::phase::Phase;
pub use agent::{Adapter, Agent, AgentSpec, AgentStatus, DetachedProcesses, LastFailure, Limits, Scope, Timing};
pub use check::{FieldError, InvalidAgent, check_spec};
pub use definitions::{crd_files, crds, print_crds};
pub use guardrails::{
    Destination, FailurePolicy, Guardrail, Guardrails, Platform, SecretKeyRef, SignedDestination, Webhook,
};
pub use openai::{ModelHeader, OpenAi};
pub use template::{Container, EnvVar, NotAQuantity, PodMetadata, PodSpec, PodTemplate, RestartPolicy, quantity_bytes};
pub use turn::{AgentRef, AgentTurn, AgentTurnSpec, AgentTurnStatus, TurnError};

/// The API group of both resources.
pub const GROUP: &str = "lastword.dev";
/// The version of both resources.
pub const VERSION: &str = "v1alpha1";
/// The name of the container in a template that runs the agent program.
pub const AGENT_CONTAINER: &str = "agent";

#[cfg(test)]
mod tests;
