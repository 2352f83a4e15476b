use proptest::prelude::*;

use super::*;
use crate::stream::writer::ShownOutcome;
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

fn head() -> ResponseHead {
    ResponseHead { turn_id: TurnId::new(), created_at: 7, model: "bot".into(), asked: json!({}) }
}

/// The events of a stream, each checked for what all have in common; the last line is not among them.
fn events(out: &EventText) -> Vec<Value> {
    let text = out.text();
    let mut events = Vec::new();
    for event in text.strip_suffix("data: [DONE]\n\n").unwrap_or(text).split_terminator("\n\n") {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "the event is its type");
        events.push(data);
    }
    events
}

fn number(event: &Value) -> u64 {
    event["sequence_number"].as_u64().expect("a number")
}

/// Writes a turn whose log is these frames; all of it, or what is behind a number.
fn written(head: &ResponseHead, after: Option<u64>, frames: &[Frame], end: Option<ShownOutcome<'_>>) -> EventText {
    let (mut writer, mut out, mut at) = (ResponseEvents::new(head.clone(), after), EventText::default(), 0);
    writer.begin(BegunTurn { turn_id: head.turn_id, message_id: "m", conversation: "c" }, &mut out);
    for frame in frames {
        at += frame.units();
        writer.output(at, frame, &mut out);
    }
    if let Some(outcome) = end {
        writer.end(&ShownEnd { outcome, finish_reason: None, answered: &[] }, &mut out);
    }
    out
}

fn said(events: &[Value]) -> String {
    let deltas = events.iter().filter(|e| e["type"] == "response.output_text.delta");
    deltas.filter_map(|e| e["delta"].as_str()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|e| e["type"].as_str()?.strip_prefix("response.")).collect()
}

#[test]
fn a_reply_is_written_in_the_order_that_the_libraries_check() {
    let head = head();
    let frames = [
        Frame::Progress { message: "thinks".into() },
        Frame::text("6*7"),
        Frame::ToolCall { id: "1".into(), name: "f".into(), arguments: Value::Null },
        Frame::text(" = 42"),
    ];
    let out = written(&head, None, &frames, Some(ShownOutcome::Reply));
    assert!(out.text().ends_with("\n\ndata: [DONE]\n\n"));
    let events = events(&out);
    assert_eq!(
        names(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed"
        ]
    );
    let last = &events[9]["response"];
    assert_eq!((&last["status"], &last["output"][0]), (&json!("completed"), &events[8]["item"]));
    assert_eq!(last["output"][0]["content"][0]["text"], "6*7 = 42");
    assert_eq!(events[0]["response"]["id"], last["id"]);
    assert_eq!(said(&events), "6*7 = 42");
}

#[test]
fn an_empty_reply_has_its_item_and_a_failure_has_none_to_end() {
    let head = head();
    let names_of =
        |frames: &[Frame], end: ShownOutcome<'_>| names(&events(&written(&head, None, frames, Some(end)))).join(" ");
    let item = "output_item.added content_part.added";
    let done = "output_text.done content_part.done output_item.done completed";
    assert_eq!(names_of(&[], ShownOutcome::Reply), format!("created in_progress {item} {done}"));
    let failure = Failure::new(Reason::OutOfMemory);
    assert_eq!(names_of(&[], ShownOutcome::Failed(&failure)), "created in_progress failed");
    let begun = format!("created in_progress {item} output_text.delta");
    assert_eq!(names_of(&[Frame::text("a")], ShownOutcome::Failed(&failure)), format!("{begun} failed"));
    assert_eq!(names_of(&[Frame::text("a")], ShownOutcome::Cancelled(&failure)), format!("{begun} incomplete"));
}

fn log() -> impl Strategy<Value = Vec<Frame>> {
    let frame = prop_oneof![
        4 => "[a-z\u{e4}\u{20ac}\u{1f600}]{1,6}".prop_map(Frame::text),
        1 => Just(Frame::Progress { message: "p".into() }),
    ];
    prop::collection::vec(frame, 0..12)
}

/// The same log, with its text cut into single characters.
fn finely(frames: &[Frame]) -> Vec<Frame> {
    let cut = |frame: &Frame| match frame {
        Frame::Text { text } => text.chars().map(|c| Frame::text(c.to_string())).collect(),
        other => vec![other.clone()],
    };
    frames.iter().flat_map(cut).collect()
}

/// The same log, with its text joined.
fn coarsely(frames: &[Frame]) -> Vec<Frame> {
    crate::turn::frame::Span::new(0, frames.to_vec()).coalesced().frames
}

proptest! {
    /// Whoever lost the connection behind any event goes on, on a replica where the log is cut otherwise, with exactly the rest.
    #[test]
    fn a_client_that_comes_back_gets_each_byte_once(frames in log(), broken in 0usize..40, fine in any::<bool>(), ends in 0u8..3) {
        let head = head();
        let failure = Failure::new(Reason::NodeLost);
        let end = || match ends {
            0 => ShownOutcome::Reply,
            1 => ShownOutcome::Cancelled(&failure),
            _ => ShownOutcome::Failed(&failure),
        };
        let (live, replayed) = match fine {
            true => (finely(&frames), coarsely(&frames)),
            false => (coarsely(&frames), finely(&frames)),
        };
        let whole = events(&written(&head, None, &live, Some(end())));
        prop_assert!(whole.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])), "the numbers rise");
        let seen = &whole[..broken.min(whole.len())];
        let after = seen.last().map(number);
        let rest = events(&written(&head, after, &replayed, Some(end())));
        prop_assert!(rest.iter().all(|e| after.is_none_or(|after| number(e) > after)));
        prop_assert_eq!(said(seen) + &said(&rest), said(&whole));
        let mut all = names(seen);
        all.extend(names(&rest));
        all.dedup();
        let mut expected = names(&whole);
        expected.dedup();
        prop_assert_eq!(all, expected);
        // What ends the response is the same object for both.
        if let (Some(live), Some(replayed)) = (whole.last(), rest.last()) {
            prop_assert_eq!(live, replayed);
        }
    }

    /// A number that the client made up cuts no character, and panics nowhere.
    #[test]
    fn any_number_can_be_come_back_with(frames in log(), after in any::<u64>()) {
        let head = head();
        let near = after % 64;
        for after in [after, near] {
            let events = events(&written(&head, Some(after), &frames, Some(ShownOutcome::Reply)));
            prop_assert!(events.iter().all(|e| number(e) > after));
        }
    }

    /// What was streamed beyond the end of the log was a preview; the events that end the response still come last.
    #[test]
    fn the_end_is_behind_whatever_was_streamed(offset in any::<u64>()) {
        let mut writer = ResponseEvents::new(head(), None);
        let mut out = EventText::default();
        writer.output(offset, &Frame::text("x"), &mut out);
        writer.end(&ShownEnd { outcome: ShownOutcome::Reply, finish_reason: None, answered: &[] }, &mut out);
        let events = events(&out);
        prop_assert!(events.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])));
    }
}
