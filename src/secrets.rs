//! Secrets: URLs and keys that an Agent names without holding them. They are read each time that they are used. Nothing
//! stores them and nothing logs them.

use std::fmt::Debug;

use futures::future::BoxFuture;

use crate::crd::SecretKeyRef;

/// The longest secret value that is accepted, in bytes. A longer one is an error.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// A Secret could not be read. The cause never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read Secret {name}: {cause}")]
pub struct SecretError {
    pub name: String,
    pub cause: String,
    /// Whether trying again may help: what holds the Secrets was away. Otherwise somebody has to change something.
    pub passing: bool,
}

/// A place that holds Secrets: Kubernetes, or the environment of one machine.
pub trait Secrets: Debug + Send + Sync {
    /// The value under a key of a Secret in a namespace; `None` if there is no such Secret or key.
    ///
    /// # Errors
    /// If it is not known whether there is one.
    fn get<'a>(
        &'a self,
        namespace: &'a str,
        secret: &'a SecretKeyRef,
    ) -> BoxFuture<'a, Result<Option<String>, SecretError>>;
}

/// For a process that may not read Secrets: every look-up finds none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get<'a>(&'a self, _: &'a str, _: &'a SecretKeyRef) -> BoxFuture<'a, Result<Option<String>, SecretError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}
