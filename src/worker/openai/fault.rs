//! Why there is no completion, as far as the next step depends on it.

use std::time::Duration;

use crate::turn::cause::model::ModelRefusal;
use crate::turn::terminal::Failure;

/// Why there is no completion.
#[derive(Debug)]
pub(super) enum Fault {
    /// An answer began, or the turn takes none: it ends so.
    Final(Failure),
    /// The server could not be asked, or refused. `again`: nothing of an answer has come, so the server may be asked again
    /// after this pause.
    Refused { refusal: ModelRefusal, detail: String, again: Option<Duration> },
}

impl Fault {
    /// An answer came, and it is a refusal.
    pub(super) fn refused(refusal: ModelRefusal, detail: impl Into<String>) -> Self {
        Fault::Refused { refusal, detail: detail.into(), again: None }
    }

    /// The connection was lost before the first byte of an answer: mostly because the server closed it as idle in the moment
    /// in which it was used again.
    pub(super) fn no_byte(detail: impl Into<String>) -> Self {
        Fault::Refused { refusal: ModelRefusal::MayPass, detail: detail.into(), again: Some(Duration::ZERO) }
    }
}
