//! Secrets: URLs and keys that an Agent names and does not hold. They are read where they are used, each time, and
//! stored nowhere; nobody logs them.

use std::fmt::Debug;

use futures::future::BoxFuture;

use crate::crd::SecretKeyRef;

/// The longest value that is used, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// Why a Secret could not be asked for; trying again can help. It never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read Secret {name}: {cause}")]
pub struct SecretError {
    pub name: String,
    pub cause: String,
}

/// Where Secrets are.
pub trait Secrets: Debug + Send + Sync {
    /// The value under a key of a Secret in a namespace; `None` if there is no such Secret or key.
    fn get<'a>(
        &'a self,
        namespace: &'a str,
        secret: &'a SecretKeyRef,
    ) -> BoxFuture<'a, Result<Option<String>, SecretError>>;
}

/// For processes that may read none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get<'a>(&'a self, _: &'a str, _: &'a SecretKeyRef) -> BoxFuture<'a, Result<Option<String>, SecretError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}
