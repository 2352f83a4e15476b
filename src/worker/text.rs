//! A program's bytes as text and as frames.

use crate::turn::frame::Frame;

/// The longest line that is tried as a frame, in bytes; a longer one is text.
const LINE_BYTES: usize = 1024 * 1024;

/// Decodes UTF-8 that arrives in arbitrary pieces: a character cut in two is held until it is whole, invalid bytes
/// become U+FFFD.
#[derive(Default)]
pub(super) struct Decoder {
    /// At most 3 bytes: the begin of a character.
    held: Vec<u8>,
}

impl Decoder {
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

    /// What is left at the end: a character that never became whole.
    pub(super) fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() { String::new() } else { "\u{fffd}".into() }
    }
}

/// Makes frames of stdout where each line is a frame in JSON. A line that is none is text, with its line end.
#[derive(Default)]
pub(super) struct FrameLines {
    line: Vec<u8>,
    /// The line's begin was passed on as text already: its rest is text too.
    long: bool,
    decoder: Decoder,
}

impl FrameLines {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                frames.push(self.take());
                self.long = false;
            } else if self.line.len() > LINE_BYTES {
                self.long = true;
                frames.push(self.take());
            }
        }
        frames
    }

    /// What is left at the end: a line without an end.
    pub(super) fn finish(&mut self) -> Vec<Frame> {
        let mut frames = if self.line.is_empty() { Vec::new() } else { vec![self.take()] };
        frames.push(Frame::text(self.decoder.finish()));
        frames
    }

    fn take(&mut self) -> Frame {
        let line = std::mem::take(&mut self.line);
        match serde_json::from_slice(&line) {
            Ok(frame) if !self.long => frame,
            _ => Frame::text(self.decoder.push(&line)),
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
