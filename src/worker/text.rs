//! What a program prints, as text or as frames of output.

use crate::lines::{LinePiece, Lines};
use crate::turn::frame::Frame;
use crate::utf8::Decoder;

/// The longest line that may be a frame, in bytes; a longer one is text.
const LINE_BYTES: usize = 1024 * 1024;

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
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.lines.push(bytes);
        let mut frames = Vec::new();
        while let Some(line) = self.lines.next() {
            let may_be_frame = line.is_whole();
            frames.push(self.frame(line, may_be_frame));
        }
        frames
    }

    /// The frames of what is left when the program has ended: of a last line without an end.
    pub(super) fn finish(&mut self) -> Vec<Frame> {
        let last = self.lines.finish().map(|line| {
            let may_be_frame = line.begins;
            self.frame(line, may_be_frame)
        });
        last.into_iter().chain([Frame::text(self.decoder.finish())]).collect()
    }

    fn frame(&mut self, line: LinePiece, may_be_frame: bool) -> Frame {
        match serde_json::from_slice(&line.bytes) {
            Ok(frame) if may_be_frame => frame,
            _ => {
                let mut text = self.decoder.push(&line.bytes);
                if line.ends {
                    text += &self.decoder.push(b"\n");
                }
                Frame::text(text)
            }
        }
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
                Frame::Progress { message: "p".into() },
                Frame::text("plain \u{20ac}\n"),
                Frame::text("{\"type\":\"no\"}\n"),
                Frame::text("last"),
                Frame::text(""),
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
            [Frame::text("{\"type\":\"text\",\"text\":\"t\"}\n")]
        );
    }
}
