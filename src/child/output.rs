//! What workers print: line by line to our own log, and its end for the detail of a failure.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// A longer line is cut here, in bytes.
const MAX_LINE: usize = 4 * 1024;
/// What is kept of stderr, in bytes.
const TAIL: usize = 8 * 1024;

/// The end of what a worker printed. Shared with the one who reports its death.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let over = kept.len().saturating_sub(TAIL);
        kept.drain(..over);
    }

    /// As text, without what surrounds it.
    pub fn text(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).trim().to_owned()
    }
}

/// Lines out of bytes, each cut at [`MAX_LINE`].
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    cut: bool,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], mut say: impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.append(&bytes[..end]);
            self.end(&mut say);
            bytes = &bytes[end + 1..];
        }
        self.append(bytes);
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.cut |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end(&mut self, mut say: impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.line);
        // No control characters: they could rewrite a terminal.
        let mut text: String =
            text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
        if self.cut {
            text.push('…');
        }
        if !text.is_empty() {
            say(&text);
        }
        self.line.clear();
        self.cut = false;
    }
}

/// Copies a stream to the log until it ends, and its end to `tail`.
pub async fn copy(mut from: impl AsyncRead + Unpin, tail: Option<Tail>, say: impl Fn(&str)) {
    let mut buffer = vec![0; 8 * 1024];
    let mut lines = Lines::default();
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if let Some(tail) = &tail {
                    tail.push(&buffer[..n]);
                }
                lines.push(&buffer[..n], &say);
            }
        }
    }
    lines.end(&say);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_harmless() {
        let mut said = Vec::new();
        let mut lines = Lines::default();
        lines.push(b"one\ntw", |l| said.push(l.to_owned()));
        lines.push(b"o\x1b[2J\r\n\n", |l| said.push(l.to_owned()));
        lines.push(&[b'x'; 3 * MAX_LINE], |l| said.push(l.to_owned()));
        lines.push(b"y\nz", |l| said.push(l.to_owned()));
        lines.end(|l| said.push(l.to_owned()));
        assert_eq!(said[..2], ["one", "two [2J"]);
        assert_eq!(said[2], "x".repeat(MAX_LINE) + "…");
        assert_eq!(said[3], "z");
    }

    #[test]
    fn the_tail_is_the_end() {
        let tail = Tail::default();
        tail.push(&[b'a'; 2 * TAIL]);
        tail.push(b"the end\n");
        let text = tail.text();
        assert!(text.ends_with("aaathe end"));
        assert_eq!(text.len(), TAIL - 1);
    }
}
