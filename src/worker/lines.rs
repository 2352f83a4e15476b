//! Lines of an HTTP answer that does not end: the turns stream (NDJSON) and a model's stream (SSE).

use bytes::{Buf, Bytes, BytesMut};

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
}

/// Reads lines of at most `limit` bytes.
pub(super) struct Lines {
    response: reqwest::Response,
    buffer: BytesMut,
    /// So far there is no line end in the buffer.
    scanned: usize,
    limit: usize,
}

impl Lines {
    pub(super) fn new(response: reqwest::Response, limit: usize) -> Self {
        Lines { response, buffer: BytesMut::new(), scanned: 0, limit }
    }

    /// The next line without its end; `None` at the end of the stream. A last line without an end is no line: the
    /// stream was cut. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                return Ok(Some(line.freeze()));
            }
            self.scanned = self.buffer.len();
            if self.scanned > self.limit {
                return Err(LineError::TooLong(self.limit));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(LineError::Broken(super::client::causes(&error))),
            }
        }
    }
}
