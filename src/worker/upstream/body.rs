//! The bytes of a server's answer, which may not fall silent.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use reqwest::Response;
use tokio::time::timeout;

use crate::worker::http::causes;

/// Why no more bytes of an answer come. The server is named without its article.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the {0} said nothing for {1} s")]
    Silent(&'static str, u64),
    #[error("the connection to the {0} broke: {1}")]
    Broken(&'static str, String),
}

/// See [`body`].
pub type AnswerBody = Pin<Box<dyn Stream<Item = Result<Bytes, AnswerError>> + Send>>;

/// The bytes of an answer, each piece within `idle` after the one before it.
pub fn body(server: &'static str, response: Response, idle: Duration) -> AnswerBody {
    let pieces = response.bytes_stream().boxed();
    Box::pin(stream::unfold(Some(pieces), move |pieces| async move {
        let mut pieces = pieces?;
        match timeout(idle, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(AnswerError::Broken(server, causes(&error))), None)),
            Err(_) => Some((Err(AnswerError::Silent(server, idle.as_secs())), None)),
        }
    }))
}
