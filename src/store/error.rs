//! Why a verb of the store did not happen, and what a caller over HTTP is told of it.

use std::sync::Arc;

use crate::problem::Problem;

/// Why a verb did not happen, or is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No connection, a timeout, an error around COMMIT: the verb may or may not have happened. Call it again.
    #[error("the database is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The database refused the content of a row (SQLSTATE classes 22 and 23), or holds content that cannot be read.
    #[error("the database refused the content: {0}")]
    Refused(Arc<str>),
    /// The transaction lost a deadlock or a serialization race, or what it was about is gone; nothing happened.
    #[error("the database chose another transaction: {0}")]
    Raced(Arc<str>),
    /// The schema is not one that this program can work with.
    #[error("{0}")]
    Schema(Arc<str>),
    /// This process is about to end, and its store takes no more calls.
    #[error("the store is closed")]
    Closed,
    /// Lastword itself failed. The call may or may not have happened.
    #[error("a bug in Lastword: {0}")]
    Bug(Arc<str>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text: Arc<str> = error.to_string().into();
        match error.as_database_error().and_then(|e| e.code()) {
            Some(code) if code.starts_with("22") || code.starts_with("23") => StoreError::Refused(text),
            Some(code) if code == "40001" || code == "40P01" => StoreError::Raced(text),
            _ => match error {
                // What cannot be encoded or decoded is a matter of content, not of the connection.
                sqlx::Error::Encode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    StoreError::Refused(text)
                }
                _ => StoreError::Unavailable(text),
            },
        }
    }
}

/// Tells whether trying again can help, and no internals: those are logged.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(why) => {
                tracing::warn!(%why, "the database refused a request's content");
                Problem::bad_request("the content cannot be stored")
            }
            error => {
                tracing::warn!(%error, "a request was answered 503: {error}");
                Problem::unavailable()
            }
        }
    }
}
