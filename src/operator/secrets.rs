//! Secrets, read from the API server: one GET for each use. Secrets are neither watched nor listed nor kept, so the right to
//! `get` them is enough, and a changed Secret counts at its next use.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::client::{ApiCallError, bounded_by};
use crate::crd::SecretKeyRef;
use crate::secrets::{MAX_SECRET_BYTES, SecretError, Secrets};

/// The longest that a GET of a Secret may take. Whoever needs the Secret tries again later.
const GET_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads Secrets with the rights of this process's ServiceAccount (`get` on `secrets`).
#[derive(Clone)]
pub struct KubeSecrets {
    client: Client,
}

impl KubeSecrets {
    /// Sends nothing yet.
    pub fn new(client: Client) -> Self {
        KubeSecrets { client }
    }

    async fn read(&self, namespace: &str, secret: &SecretKeyRef) -> Result<Option<String>, SecretError> {
        let failed = |cause: String| SecretError { name: secret.name.clone(), cause, passing: false };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = bounded_by(GET_TIMEOUT, api.get_opt(&secret.name)).await;
        let found = found.map_err(|error| SecretError { passing: !is_refusal(&error), ..failed(error.to_string()) })?;
        let Some(value) = found.and_then(|s| s.data).and_then(|mut data| data.remove(&secret.key)) else {
            return Ok(None);
        };
        if value.0.len() > MAX_SECRET_BYTES {
            return Err(failed(format!("its key {} is larger than {MAX_SECRET_BYTES} bytes", secret.key)));
        }
        // The error must not carry the value's bytes, which `FromUtf8Error` would.
        String::from_utf8(value.0).map(Some).map_err(|_| failed(format!("its key {} is not UTF-8", secret.key)))
    }
}

/// Whether the API server answered that this may not be read, which only a change of RBAC mends.
fn is_refusal(error: &ApiCallError) -> bool {
    matches!(error, ApiCallError::Api(kube::Error::Api(status)) if matches!(status.code, 401 | 403))
}

impl std::fmt::Debug for KubeSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeSecrets")
    }
}

impl Secrets for KubeSecrets {
    fn get<'a>(
        &'a self,
        namespace: &'a str,
        secret: &'a SecretKeyRef,
    ) -> BoxFuture<'a, Result<Option<String>, SecretError>> {
        Box::pin(self.read(namespace, secret))
    }
}
