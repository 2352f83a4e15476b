//! What a turn is and how it ends: pure types and decisions, without IO, clock, SQL or Kubernetes.

pub mod reason;
