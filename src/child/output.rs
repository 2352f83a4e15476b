//! What child processes print: line by line for our own log, and the end of their stderr for the detail of a failure.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

use crate::lines::{LinePiece, Lines};

/// The longest line that is given out in one piece, in bytes; [`printable`] cuts there.
const MAX_LINE: usize = 4 * 1024;
/// What is kept of stderr, in bytes.
const MAX_TAIL: usize = 8 * 1024;
/// What is read at a time, in bytes.
const READ: usize = 8 * 1024;

/// The last bytes that a child wrote to its stderr; 8 KiB at the most. Clones share them. The default is that of a child
/// that wrote nothing and has closed its stderr.
#[derive(Debug, Clone, Default)]
pub struct StderrTail(Arc<TailState>);

#[derive(Debug, Default)]
struct TailState {
    read: Mutex<TailBytes>,
    /// Both tell of the end of the stream: the first to threads, the second to tasks.
    end: Condvar,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct TailBytes {
    bytes: VecDeque<u8>,
    /// More may come.
    open: bool,
}

impl StderrTail {
    /// What was read so far, as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.read().bytes.make_contiguous()).trim().to_owned()
    }

    /// Returns when stderr was read to its end: when the child, and whoever inherited its stderr, has closed it.
    /// Cancel-safe.
    pub async fn closed(&self) {
        if self.read().open {
            self.0.closed.cancelled().await;
        }
    }

    /// The same for a thread, which blocks for at most `limit`.
    pub fn wait_closed(&self, limit: Duration) {
        let waited = self.0.end.wait_timeout_while(self.read(), limit, |read| read.open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn push(&self, bytes: &[u8]) {
        let kept = &mut self.read().bytes;
        kept.extend(&bytes[bytes.len().saturating_sub(MAX_TAIL)..]);
        let excess = kept.len().saturating_sub(MAX_TAIL);
        kept.drain(..excess);
    }

    fn read(&self) -> MutexGuard<'_, TailBytes> {
        self.0.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the stream is at its end, also when the task that reads it is dropped.
struct EndOfTail(StderrTail);

impl Drop for EndOfTail {
    fn drop(&mut self) {
        self.0.read().open = false;
        self.0.0.end.notify_all();
        self.0.0.closed.cancel();
    }
}

/// Gives the lines of a stream to `each` until it ends; a line of more than 4 KiB comes in pieces.
pub async fn copy_lines(from: impl AsyncRead + Unpin, each: impl FnMut(&LinePiece)) {
    copy(from, |_| {}, each).await;
}

/// [`copy_lines`] for a child's stderr, whose end is kept; the future is to be spawned.
pub fn copy_stderr<R: AsyncRead + Unpin, F: FnMut(&LinePiece)>(
    from: R,
    each: F,
) -> (StderrTail, impl Future<Output = ()> + use<R, F>) {
    let tail = StderrTail::default();
    tail.read().open = true;
    let end = EndOfTail(tail.clone());
    let copying = async move { copy(from, |bytes| end.0.push(bytes), each).await };
    (tail, copying)
}

async fn copy(mut from: impl AsyncRead + Unpin, mut keep: impl FnMut(&[u8]), mut each: impl FnMut(&LinePiece)) {
    let mut buffer = vec![0; READ];
    let mut lines = Lines::new(MAX_LINE);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        keep(&buffer[..read]);
        lines.push(&buffer[..read]);
        while let Some(piece) = lines.next() {
            each(&piece);
        }
    }
    if let Some(piece) = lines.finish() {
        each(&piece);
    }
}

/// A line as text for a log that people read in a terminal: cut at 4 KiB, without control characters. `None` for an empty
/// line, and for the later pieces of a long one.
pub fn printable(piece: &LinePiece) -> Option<String> {
    if !piece.begins {
        return None;
    }
    let text = String::from_utf8_lossy(&piece.bytes[..piece.bytes.len().min(MAX_LINE)]);
    // Control characters could rewrite what the terminal shows.
    let mut text: String = text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
    if piece.bytes.len() > MAX_LINE {
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_harmless() {
        let mut printed = b"one\ntwo\x1b[2J\r\n\n".to_vec();
        printed.extend([b'x'; 3 * MAX_LINE]);
        printed.extend(b"y\nz");
        let mut said = Vec::new();
        copy_lines(&printed[..], |piece| said.extend(printable(piece))).await;
        assert_eq!(said[..2], ["one", "two [2J"]);
        assert_eq!(said[2], "x".repeat(MAX_LINE) + "…");
        assert_eq!(said[3], "z");
    }

    #[test]
    fn the_tail_is_the_end() {
        let tail = StderrTail::default();
        tail.push(&[b'a'; 2 * MAX_TAIL]);
        tail.push(b"the end\n");
        let text = tail.text();
        assert!(text.ends_with("aaathe end"));
        assert_eq!(text.len(), MAX_TAIL - 1);
    }

    #[tokio::test]
    async fn a_tail_closes_with_its_stream_and_with_its_reader() {
        let (tail, copying) = copy_stderr(&b"no such file\n"[..], |_| {});
        tail.wait_closed(Duration::ZERO);
        assert_eq!(tail.text(), "");
        copying.await;
        tail.closed().await;
        assert_eq!(tail.text(), "no such file");
        let (tail, copying) = copy_stderr(tokio::io::empty(), |_| {});
        drop(copying);
        tail.closed().await;
        tail.wait_closed(Duration::from_secs(3600));
    }
}
