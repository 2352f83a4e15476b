//! Agents outside Kubernetes: the registry of those that turns can be submitted to, and what makes an Agent valid, whether it
//! comes from a YAML file of one machine or from an object in Kubernetes.

mod registry;
mod validate;
mod yaml;

pub use registry::{Agents, ServedAgent};
pub use yaml::{YamlError, agents_from_yaml};

#[cfg(test)]
mod tests;
