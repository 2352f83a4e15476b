//! What a program prints, as text or as frames of output.

use crate::lines::{LinePiece, Lines};
use crate::turn::frame::Frame;
use crate::wire::MAX_FRAME_BYTES;

/// The longest line that may be a frame, in bytes. A longer one that begins as a frame does fails the turn, or JSON would be
/// taken for the reply; any other is text.
const LINE_BYTES: usize = MAX_FRAME_BYTES;

/// A line that begins as a frame does is longer than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line that begins with {{ has more than {LINE_BYTES} bytes (1 MiB), which is the most for a frame")]
pub(super) struct LineTooLong;

/// Decodes UTF-8 that arrives in arbitrary pieces. A character that is cut in two is held until it is whole; invalid bytes
/// become U+FFFD.
#[derive(Default)]
pub(super) struct Decoder {
    /// The beginning of a character, of at most 3 bytes.
    held: Vec<u8>,
}

impl Decoder {
    /// The text of these bytes, as far as its characters are whole.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let joined;
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.held).as_slice(), bytes].concat();
            &joined
        };
        let mut text = String::with_capacity(rest.len());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.held = after.to_vec();
                        return text;
                    };
                    text.push('\u{fffd}');
                    rest = &after[bad..];
                }
            }
        }
    }

    /// U+FFFD if a character is left that never became whole, else nothing.
    pub(super) fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() { String::new() } else { "\u{fffd}".into() }
    }
}

/// Makes frames of a program's stdout, where each line is a frame in JSON. A line that is none is text, with its line end.
pub(super) struct FrameLines {
    lines: Lines,
    decoder: Decoder,
}

impl Default for FrameLines {
    fn default() -> Self {
        FrameLines { lines: Lines::new(LINE_BYTES), decoder: Decoder::default() }
    }
}

impl FrameLines {
    /// The frames of the lines that these bytes complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Result<Frame, LineTooLong>> {
        self.lines.push(bytes);
        let mut frames = Vec::new();
        while let Some(line) = self.lines.next() {
            frames.push(self.frame(line));
        }
        frames
    }

    /// The frames of what is left when the program has ended: of a last line without an end.
    pub(super) fn finish(&mut self) -> Vec<Result<Frame, LineTooLong>> {
        let last = self.lines.finish().map(|line| self.frame(line));
        last.into_iter().chain([Ok(Frame::text(self.decoder.finish()))]).collect()
    }

    /// The frame of a line, or of a piece of a long one.
    fn frame(&mut self, mut line: LinePiece) -> Result<Frame, LineTooLong> {
        if line.begins && line.bytes.trim_ascii_start().starts_with(b"{") {
            if line.bytes.len() > LINE_BYTES {
                return Err(LineTooLong);
            }
            if let Ok(frame) = serde_json::from_slice(&line.bytes) {
                return Ok(frame);
            }
        }
        if line.ends {
            line.bytes.push(b'\n');
        }
        Ok(Frame::text(self.decoder.push(&line.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_same_however_it_is_cut() {
        let bytes = "gr\u{fc}\u{df}e \u{4e16} \u{1f642}".as_bytes();
        let mut decoder = Decoder::default();
        let text: String = bytes.iter().map(|b| decoder.push(&[*b])).collect();
        assert_eq!(text + &decoder.finish(), String::from_utf8_lossy(bytes));
    }

    #[test]
    fn invalid_bytes_are_replaced() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xffb\xf0\x9f"), "a\u{fffd}b");
        assert_eq!(decoder.push(b"c\xe2"), "\u{fffd}c");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn a_line_is_a_frame_or_text() {
        let mut lines = FrameLines::default();
        let mut frames = lines.push(b"{\"type\":\"progress\",\"mess");
        assert_eq!(frames, []);
        frames = lines.push(b"age\":\"p\"}\nplain \xe2\x82\xac\n{\"type\":\"no\"}\nlast");
        frames.extend(lines.finish());
        assert_eq!(
            frames,
            [
                Ok(Frame::Progress { message: "p".into() }),
                Ok(Frame::text("plain \u{20ac}\n")),
                Ok(Frame::text("{\"type\":\"no\"}\n")),
                Ok(Frame::text("last")),
                Ok(Frame::text("")),
            ]
        );
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut lines = FrameLines::default();
        let frames = lines.push(&vec![b'x'; LINE_BYTES + 1]);
        assert_eq!(frames.len(), 1);
        assert_eq!(
            lines.push(b"{\"type\":\"text\",\"text\":\"t\"}\n"),
            [Ok(Frame::text("{\"type\":\"text\",\"text\":\"t\"}\n"))],
            "the end of a long line is no frame"
        );
    }

    #[test]
    fn only_an_object_is_a_frame_and_none_is_longer_than_the_limit() {
        for line in ["[\"text\",\"hello\"]\n", "[\"progress\",\"50%\"]\n", "{\"type\":\"text\",\"text\":[\"t\"]}\n"] {
            assert_eq!(FrameLines::default().push(line.as_bytes()), [Ok(Frame::text(line))]);
        }
        let result = |bytes: usize, end: &str| {
            let begin = "{\"type\":\"tool-result\",\"id\":\"1\",\"result\":\"";
            format!("{begin}{}\"}}{end}", "x".repeat(bytes - begin.len() - 2))
        };
        for end in ["", "\n"] {
            let frames = |bytes| {
                let mut lines = FrameLines::default();
                let mut frames = lines.push(result(bytes, end).as_bytes());
                frames.extend(lines.finish());
                frames
            };
            assert!(matches!(frames(LINE_BYTES)[0], Ok(Frame::ToolResult { .. })), "{end:?}");
            assert_eq!(frames(LINE_BYTES + 1)[0], Err(LineTooLong), "{end:?}");
            assert_eq!(frames(2 * LINE_BYTES)[0], Err(LineTooLong), "{end:?}");
        }
    }
}
