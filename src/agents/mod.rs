//! The Agents that turns can be submitted to, and what makes an Agent valid, whether it comes from a YAML file or from
//! an object in Kubernetes. Nothing here calls Kubernetes.

mod registry;
mod validate;
mod yaml;

pub use registry::{Agents, ServedAgent};
pub use yaml::{YamlError, agents_from_yaml};

#[cfg(test)]
mod tests;
