//! The W3C trace context of a request (`traceparent`), which goes with its turn to the worker and to the agent's program.

/// The length of the form that version 00 has: version, trace id, parent id and flags.
const LENGTH: usize = 55;

/// The part of a `traceparent` that is understood, in the form of version 00. `None` if it is none: what has another form is
/// no trace, however long it is, and the turn goes without. A later version may have more behind these fields.
pub fn traceparent(text: &str) -> Option<&str> {
    let (known, more) = text.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let mut field = |length| fields.next().filter(|f| f.len() == length && f.bytes().all(is_lower_hex));
    let (version, trace, parent, _flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let whole = if version == "00" { more.is_empty() } else { more.is_empty() || more.starts_with('-') };
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    (whole && version != "ff" && !zero(trace) && !zero(parent)).then_some(known)
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_has_one_form_and_one_length() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(good), Some(good));
        let later = good.replacen("00", "cc", 1);
        assert_eq!(traceparent(&later), Some(later.as_str()));
        let longer = format!("{later}-{}", "x".repeat(140_000));
        assert_eq!(traceparent(&longer), Some(later.as_str()), "what is behind is not kept");
        for none in [
            "".to_owned(),
            good[..54].to_owned(),
            format!("{good}-x"),
            format!("{good}{}", "0".repeat(140_000)),
            good.to_uppercase(),
            good.replacen("00", "ff", 1),
            good.replace("00f067aa0ba902b7", "0000000000000000"),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace('-', "_"),
            format!("{later}x"),
            "\u{e4}".repeat(40),
        ] {
            assert_eq!(traceparent(&none), None, "{none:.80}");
        }
    }
}
