//! Secrets from the API server: one GET for one use; nothing is watched, listed or kept.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::crd::SecretKeyRef;
use crate::secrets::{MAX_SECRET_BYTES, SecretError, Secrets};

/// The longest that a GET may take; what needs the Secret is tried again later.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads Secrets with the rights of our ServiceAccount (`get` on `secrets`).
#[derive(Clone)]
pub struct KubeSecrets {
    client: Client,
}

impl KubeSecrets {
    pub fn new(client: Client) -> Self {
        KubeSecrets { client }
    }

    async fn read(&self, namespace: &str, secret: &SecretKeyRef) -> Result<Option<String>, SecretError> {
        let failed = |cause: String| SecretError { name: secret.name.clone(), cause };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = match tokio::time::timeout(TIMEOUT, api.get_opt(&secret.name)).await {
            Ok(found) => found.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("no answer from the API server within {TIMEOUT:?}"))),
        };
        let Some(value) = found.and_then(|s| s.data).and_then(|mut data| data.remove(&secret.key)) else {
            return Ok(None);
        };
        if value.0.len() > MAX_SECRET_BYTES {
            return Err(failed(format!("its key {} is larger than {MAX_SECRET_BYTES} bytes", secret.key)));
        }
        // What is no text is no URL and no key of ours; its bytes are not for messages.
        String::from_utf8(value.0).map(Some).map_err(|_| failed(format!("its key {} is not UTF-8", secret.key)))
    }
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
