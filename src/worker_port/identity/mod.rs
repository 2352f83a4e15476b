//! Who calls the worker port.
//!
//! Every call of the worker protocol shows a credential, which belongs to one start of a worker and is checked against
//! the lease (`credential`). Where a worker is a process on this machine, the runtime that starts it hands the credential
//! over. A pod gets its own by showing its ServiceAccount token (`exchange`), which Kubernetes reviews (`token`).

mod credential;
mod exchange;
mod token;

pub use token::{PodIdentity, ReviewError, Reviewer};

pub(super) use credential::{AuthenticatedWorker, ShownCredential, gone, refused};
pub(super) use exchange::exchange_token;
pub(super) use token::TokenReviews;
