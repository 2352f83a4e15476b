//! What a program prints, as text or as frames of output.

use crate::lines::{LinePiece, Lines};
use crate::turn::frame::Frame;
use crate::utf8::Decoder;
use crate::wire::MAX_FRAME_BYTES;

/// The longest line that may be a frame, in bytes. A longer one that begins as a frame does fails the turn, or JSON would be
/// taken for the reply; any other is text.
const LINE_BYTES: usize = MAX_FRAME_BYTES;

/// A line that begins as a frame does is longer than a frame may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line that begins with {{ has more than {LINE_BYTES} bytes (1 MiB), which is the most for a frame")]
pub(super) struct LineTooLong;

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
