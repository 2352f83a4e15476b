//! Text out of bytes that arrive in pieces.

/// Decodes UTF-8 that arrives in arbitrary pieces. A character that is cut in two is held until it is whole; invalid bytes
/// become U+FFFD.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a character, of at most 3 bytes.
    held: Vec<u8>,
}

impl Decoder {
    /// The text of these bytes, as far as its characters are whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
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
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.held).is_empty() { String::new() } else { "\u{fffd}".into() }
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
}
