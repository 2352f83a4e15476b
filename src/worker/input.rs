//! What an agent program is given of its turn, on stdin or as an argument.

use serde_json::json;

use crate::turn::cause::program;
use crate::turn::terminal::Failure;
use crate::wire::TurnPush;

/// The longest message that can be an argument, in bytes: Linux takes 128 KiB, with a NUL at the end (`MAX_ARG_STRLEN`).
const ARGUMENT_BYTES: usize = 128 * 1024 - 1;

/// What a program reads with `LASTWORD_TURN_INPUT=json`: one object on one line. Its fields are only ever added to.
pub(super) fn json(turn: &TurnPush) -> String {
    json!({
        "turnId": turn.turn_id,
        "messageId": turn.message_id,
        "conversation": turn.conversation,
        "user": turn.user,
        "agent": turn.agent,
        "organization": turn.organization,
        "platform": turn.platform,
        "metadata": turn.platform_metadata,
        "message": turn.message,
        "history": turn.history,
    })
    .to_string()
}

/// A message as the last argument of `program`.
///
/// # Errors
/// If the message is too long for an argument, or if the program would take it for an option. It would not if the command
/// ends with `--`, behind which nothing is an option.
pub(super) fn argument(program: &[String], message: String) -> Result<String, Failure> {
    if message.len() > ARGUMENT_BYTES {
        return Err(program::argument_too_long(message.len(), ARGUMENT_BYTES));
    }
    let options_are_over = program.len() > 1 && program.last().is_some_and(|word| word == "--");
    if message.starts_with('-') && !options_are_over {
        return Err(program::looks_like_an_option());
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_never_an_option() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, message, taken) in [
            ("grep -r x", "a", true),
            ("grep", "--help", false),
            ("grep", "-", false),
            ("grep", " -x", true),
            ("grep --", "-x", true),
            ("grep -- x", "-x", false),
            ("--", "-x", false),
        ] {
            assert_eq!(argument(&words(line), message.into()).is_ok(), taken, "{line} {message}");
        }
    }

    #[test]
    fn the_longest_argument() {
        assert!(argument(&[], "x".repeat(ARGUMENT_BYTES)).is_ok());
        let failure = argument(&[], "x".repeat(ARGUMENT_BYTES + 1)).expect_err("too long");
        assert!(failure.message.contains("131072 bytes") && failure.message.contains("131071"), "{}", failure.message);
    }
}
