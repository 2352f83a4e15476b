//! What a program prints, as text or as frames of output.

use crate::lines::{LinePiece, Lines};
use crate::turn::frame::Frame;

/// The longest line that may be a frame, in bytes; a longer one is text.
const LINE_BYTES: usize = 1024 * 1024;

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
