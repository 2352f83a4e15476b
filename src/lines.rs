//! Lines out of bytes that arrive in pieces, with a bound on what is held of a line that does not end.

/// Splits bytes into lines.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Up to here the buffer is known to hold no line end.
    scanned: usize,
    /// The line in the buffer was begun in an earlier piece.
    continued: bool,
    max: usize,
}

/// A line, or a part of one that is longer than the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinePiece {
    /// Its bytes, without the line end.
    pub bytes: Vec<u8>,
    /// The piece is the beginning of its line.
    pub begins: bool,
    /// A line end follows the piece.
    pub ends: bool,
}

impl LinePiece {
    /// Whether this is a line from its beginning to its end.
    pub fn is_whole(&self) -> bool {
        self.begins && self.ends
    }
}

impl Lines {
    /// Holds at most `max` bytes of a line, and what came with them in one push; a longer line comes out in pieces.
    pub fn new(max: usize) -> Self {
        Lines { buffer: Vec::new(), scanned: 0, continued: false, max }
    }

    /// Takes bytes in. [`next`](Self::next) gives out what they complete.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line, or a piece of a line that is too long; `None` until more bytes come.
    #[expect(clippy::should_implement_trait, reason = "an iterator that ends goes on after the next push")]
    pub fn next(&mut self) -> Option<LinePiece> {
        if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
            let rest = self.buffer.split_off(self.scanned + at + 1);
            let mut bytes = std::mem::replace(&mut self.buffer, rest);
            bytes.pop();
            self.scanned = 0;
            return Some(LinePiece { bytes, begins: !std::mem::take(&mut self.continued), ends: true });
        }
        self.scanned = self.buffer.len();
        (self.buffer.len() > self.max).then(|| self.take())
    }

    /// What is left when no more bytes come: a line without an end.
    pub fn finish(&mut self) -> Option<LinePiece> {
        (!self.buffer.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> LinePiece {
        self.scanned = 0;
        let bytes = std::mem::take(&mut self.buffer);
        LinePiece { bytes, begins: !std::mem::replace(&mut self.continued, true), ends: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &str, begins: bool, ends: bool) -> LinePiece {
        LinePiece { bytes: bytes.into(), begins, ends }
    }

    fn all(lines: &mut Lines) -> Vec<LinePiece> {
        std::iter::from_fn(|| lines.next()).collect()
    }

    #[test]
    fn lines_are_the_same_however_their_bytes_arrive() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..=text.len() {
            let mut lines = Lines::new(100);
            let mut found = Vec::new();
            for bytes in text.chunks(size) {
                lines.push(bytes);
                found.extend(all(&mut lines));
            }
            assert_eq!(found, [piece("one", true, true), piece("", true, true), piece("two", true, true)], "by {size}");
            assert_eq!(lines.finish(), Some(piece("three", true, false)));
            assert_eq!(lines.finish(), None);
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let mut lines = Lines::new(4);
        lines.push(b"12345");
        assert_eq!(all(&mut lines), [piece("12345", true, false)]);
        lines.push(b"67");
        assert_eq!(all(&mut lines), []);
        lines.push(b"8\nnext\n");
        assert_eq!(all(&mut lines), [piece("678", false, true), piece("next", true, true)]);
    }
}
