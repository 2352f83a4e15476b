//! What `lastword dev` has on one machine in place of a cluster: an embedded Postgres in place of a database server, a YAML
//! file in place of the Kubernetes API, files and variables in place of Secrets.
//!
//! [`database`] is used by every role: it opens what `--database-url` names, a server or an embedded Postgres.

pub mod agents_file;
pub mod database;
pub mod postgres;
pub mod secrets;
