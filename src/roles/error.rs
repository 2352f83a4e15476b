//! Why a role did not start, or ended.

use std::path::PathBuf;

use crate::admin::CannotListen;
use crate::gateway::GatewayError;
use crate::gateway::args::GatewayInCleartext;
use crate::local::agents_file::AgentsFileError;
use crate::local::database::DatabaseError;
use crate::private::PrivateError;
use crate::store::StoreError;
use crate::tls::TlsError;

/// Why a role did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error(transparent)]
    GatewayInCleartext(#[from] GatewayInCleartext),
    #[error(
        "worker pods would connect to {0} in cleartext, with their credentials: use https://, or allow it with --allow-cleartext (LASTWORD_ALLOW_CLEARTEXT)"
    )]
    CleartextGateway(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Agents(#[from] AgentsFileError),
    #[error("there is no Kubernetes to talk to: {0}; run it in a pod, or set KUBECONFIG")]
    Kubernetes(#[from] kube::Error),
    #[error("cannot make an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// `dev` keeps its machine's identity in a file, so that it knows the workers of its former run.
    #[error("this machine's identity in {0} cannot be read; remove the file if no `dev` runs")]
    Node(PathBuf),
    #[error(transparent)]
    Private(#[from] PrivateError),
    #[error("the embedded Postgres ended by itself; its log is postgres.log in the data directory")]
    PostgresEnded,
}
