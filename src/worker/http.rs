//! What the worker's calls over HTTP share, to gateways and to model servers: answers that are read line by line or whole,
//! with a limit on their length, and errors that say their causes.

use std::error::Error;

use reqwest::Response;

use crate::lines::Lines;

/// Why a stream gives no further line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
}

/// The lines of an answer that has no end of its own: the turns stream (NDJSON).
pub(super) struct StreamLines {
    response: Response,
    lines: Lines,
    /// In bytes.
    longest: usize,
}

impl StreamLines {
    /// Reads lines of at most `longest` bytes.
    pub(super) fn new(response: Response, longest: usize) -> Self {
        StreamLines { response, lines: Lines::new(longest), longest }
    }

    /// The next line without its end; `None` at the end of the stream. Bytes after the last line end are dropped: the stream
    /// was cut in the middle of a line. Cancel-safe: what was received stays in the buffer.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            match self.lines.next() {
                Some(line) if line.is_whole() => return Ok(Some(line.bytes)),
                Some(_) => return Err(LineError::TooLong(self.longest)),
                None => {}
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.lines.push(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(LineError::Broken(causes(&error))),
            }
        }
    }
}

/// An answer's whole body, or an error if it is longer than `limit` bytes.
pub(super) async fn body_of(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("an answer of more than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The beginning of an answer's body, of at most `limit` bytes; less if it breaks off.
pub(super) async fn beginning_of(mut response: Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < limit
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(limit);
    body
}

/// An error with its causes: reqwest's own text leaves out what went wrong.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
