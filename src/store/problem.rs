//! What a caller over HTTP is told when the database failed: whether trying again can help, never internals.

use super::StoreError;
use crate::problem::Problem;

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(why) => {
                tracing::warn!(%why, "the database refused a request's content");
                Problem::bad_request("the content cannot be stored")
            }
            StoreError::Unavailable(why) | StoreError::Raced(why) | StoreError::Schema(why) => {
                tracing::warn!(%why, "a request was answered 503");
                Problem::unavailable()
            }
        }
    }
}
