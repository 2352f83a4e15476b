//! Each dialect's translation, held against what its clients check: however the text is cut, the same text arrives; what was opened
//! is closed before a good end; there is one terminal, which is the last thing that is said.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::agui::events::AgUiWriter;
use super::run::{BegunTurn, EventText, TurnWriter};
use super::ui::events::UiMessageWriter;
use crate::stream::writer::{ShownEnd, ShownOutcome};
use crate::turn::frame::{Frame, Span};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// All that a writer says of a turn, as JSON; `[DONE]` is a string.
fn written(mut writer: impl TurnWriter, frames: &[Frame], failure: Option<&Failure>) -> Vec<Value> {
    let mut out = EventText::default();
    let turn_id = "0199a3f0-0000-7000-8000-000000000001".parse::<TurnId>().expect("an id");
    writer.begin(BegunTurn { turn_id, message_id: "r", conversation: "t" }, &mut out);
    let mut at = 0;
    for frame in frames {
        at += frame.units();
        writer.output(at, frame, &mut out);
    }
    let end = ShownEnd { outcome: ShownOutcome::of(failure), finish_reason: None, answered: &[] };
    writer.end(&end, &mut out);
    let text = String::from_utf8(out.take().to_vec()).expect("UTF-8");
    assert!(text.ends_with("\n\n"));
    let data = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("a line of data"));
    data.map(|data| if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).expect("JSON") }).collect()
}

fn agui() -> AgUiWriter {
    AgUiWriter::new("t".into(), "r".into())
}

fn kind(event: &Value) -> &str {
    event["type"].as_str().unwrap_or_default()
}

fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_else(|| panic!("no {field} in {event}"))
}

/// The rules of the verifier of `@ag-ui/client`. Gives the text, and the terminal.
fn judged_agui(events: &[Value]) -> (String, Value) {
    let (mut said, mut open, mut calls) = (String::new(), BTreeSet::new(), BTreeSet::new());
    let (first, rest) = events.split_first().expect("events");
    assert_eq!(kind(first), "RUN_STARTED");
    let (last, rest) = rest.split_last().expect("a terminal");
    for event in rest {
        let message = || text(event, "messageId").to_owned();
        match kind(event) {
            "TEXT_MESSAGE_START" => assert!(open.insert(message()), "{event}"),
            "TEXT_MESSAGE_CONTENT" => {
                assert!(open.contains(&message()), "{event}");
                said += text(event, "delta");
            }
            "TEXT_MESSAGE_END" => assert!(open.remove(&message()), "{event}"),
            "TOOL_CALL_START" => {
                assert!(open.is_empty(), "a text goes on behind a call: {event}");
                assert!(calls.insert(text(event, "toolCallId").to_owned()), "{event}");
            }
            "TOOL_CALL_ARGS" => assert!(calls.contains(text(event, "toolCallId")), "{event}"),
            "TOOL_CALL_END" => assert!(calls.contains(text(event, "toolCallId")), "{event}"),
            "TOOL_CALL_RESULT" => assert!(event["content"].is_string() && event["messageId"].is_string()),
            "ACTIVITY_SNAPSHOT" => assert!(event["content"].is_object()),
            "CUSTOM" => {}
            other => panic!("{other} between start and end"),
        }
    }
    match kind(last) {
        "RUN_FINISHED" => assert!(open.is_empty(), "a text is open at a good end"),
        "RUN_ERROR" => {}
        other => panic!("{other} is no terminal"),
    }
    (said, last.clone())
}

/// The rules of `ai`. Gives the text, and the terminal.
fn judged_ui(parts: &[Value]) -> (String, Value) {
    let (mut said, mut open, mut calls) = (String::new(), BTreeSet::new(), BTreeSet::new());
    assert_eq!(kind(&parts[0]), "start");
    assert_eq!(kind(&parts[1]), "start-step");
    let (done, rest) = parts[2..].split_last().expect("an end");
    assert_eq!(done, "[DONE]");
    let (last, rest) = rest.split_last().expect("a terminal");
    let mut stepped = false;
    for part in rest {
        let id = || text(part, "id").to_owned();
        match kind(part) {
            "text-start" => assert!(open.insert(id()), "{part}"),
            "text-delta" => {
                assert!(open.contains(&id()), "{part}");
                said += text(part, "delta");
            }
            "text-end" => assert!(open.remove(&id()), "{part}"),
            "tool-input-available" => {
                assert!(open.is_empty(), "a text goes on behind a call: {part}");
                assert!(calls.insert(text(part, "toolCallId").to_owned()), "{part}");
            }
            "tool-output-available" => assert!(calls.contains(text(part, "toolCallId")), "{part}"),
            "finish-step" => stepped = true,
            data if data.starts_with("data-") => assert!(part.get("data").is_some(), "{part}"),
            other => panic!("{other} between start and end"),
        }
    }
    match kind(last) {
        "finish" => assert!(open.is_empty() && stepped, "a part is open at a good end"),
        "abort" => assert!(open.is_empty()),
        "error" => assert!(last["errorText"].is_string()),
        other => panic!("{other} is no terminal"),
    }
    (said, last.clone())
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = "[ab]";
    let value = prop_oneof![Just(Value::Null), Just(json!("x\n\ny")), Just(json!({"a": [1, null]}))];
    prop_oneof![
        5 => "[a-z\u{e4}\u{20ac}\u{1f600}\n\\PC]{1,6}".prop_map(Frame::text),
        1 => (id, value.clone()).prop_map(|(id, arguments)| Frame::ToolCall { id, name: "sum".into(), arguments }),
        1 => (id, value.clone()).prop_map(|(id, result)| Frame::ToolResult { id, result }),
        1 => "[a-z]{1,3}".prop_map(|message| Frame::Progress { message }),
        1 => (id, value).prop_map(|(name, value)| Frame::Data { name, value }),
    ]
}

fn failure() -> impl Strategy<Value = Option<Failure>> {
    prop_oneof![
        Just(None),
        Just(Some(Failure::new(Reason::Cancelled))),
        (0..Reason::ALL.len()).prop_map(|n| Some(Failure::new(Reason::ALL[n]))),
    ]
}

/// The frames with every text cut into single characters.
fn cut(frames: &[Frame]) -> Vec<Frame> {
    let one = |frame: &Frame| match frame {
        Frame::Text { text } => text.chars().map(Frame::text).collect(),
        other => vec![other.clone()],
    };
    frames.iter().flat_map(one).collect()
}

/// What was said without how its text was cut: deltas that follow each other are joined.
fn joined(events: Vec<Value>) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for event in events {
        if let (Some(delta), Some(last)) = (event["delta"].as_str(), all.last_mut())
            && last["type"] == event["type"]
            && last["type"] != "TOOL_CALL_ARGS"
        {
            let both = format!("{}{delta}", text(last, "delta"));
            last["delta"] = json!(both);
        } else {
            all.push(event);
        }
    }
    all
}

proptest! {
    #[test]
    fn every_translation_keeps_its_clients_rules(frames in prop::collection::vec(frame(), 0..12), failure in failure()) {
        let frames = Span::new(0, frames).frames;
        let whole = Span::new(0, frames.clone()).text();
        let failure = failure.as_ref();
        let (said, last) = judged_agui(&written(agui(), &frames, failure));
        prop_assert_eq!(&said, &whole);
        match failure {
            None => prop_assert_eq!(&last["outcome"], &json!({"type": "success"})),
            Some(f) if f.reason == Reason::Cancelled => prop_assert_eq!(&last["outcome"], &json!({"type": "cancelled"})),
            Some(f) => prop_assert_eq!(&last["code"], &json!(f.reason)),
        }
        let (said, last) = judged_ui(&written(UiMessageWriter::default(), &frames, failure));
        prop_assert_eq!(&said, &whole);
        let end = match failure {
            None => "finish",
            Some(f) if f.reason == Reason::Cancelled => "abort",
            Some(_) => "error",
        };
        prop_assert_eq!(kind(&last), end);
    }

    #[test]
    fn a_replay_equals_what_was_live_however_its_text_was_cut(frames in prop::collection::vec(frame(), 0..12), failure in failure()) {
        let (live, replay) = (cut(&frames), Span::new(0, frames).coalesced().frames);
        let failure = failure.as_ref();
        prop_assert_eq!(joined(written(agui(), &live, failure)), joined(written(agui(), &replay, failure)));
        let ui = UiMessageWriter::default;
        prop_assert_eq!(joined(written(ui(), &live, failure)), joined(written(ui(), &replay, failure)));
    }
}

#[test]
fn agui_has_no_null_where_a_field_is_optional() {
    let frames = [
        Frame::text("a"),
        Frame::ToolCall { id: "1".into(), name: "sum".into(), arguments: Value::Null },
        Frame::ToolResult { id: "1".into(), result: Value::Null },
        Frame::Progress { message: "half".into() },
        Frame::text("b"),
    ];
    for failure in [None, Some(Failure::new(Reason::AgentError)), Some(Failure::new(Reason::Cancelled))] {
        for event in written(agui(), &frames, failure.as_ref()) {
            assert!(event.as_object().expect("an object").values().all(|value| !value.is_null()), "{event}");
        }
    }
}

#[test]
fn calls_of_one_step_belong_to_the_message_before_them() {
    let call = |id: &str| Frame::ToolCall { id: id.into(), name: "sum".into(), arguments: json!({"a": 1}) };
    let result = Frame::ToolResult { id: "1".into(), result: json!("3") };
    let events =
        written(agui(), &[Frame::text("see"), call("1"), call("1"), result, call("2"), Frame::text("3")], None);
    let starts: Vec<_> = events.iter().filter(|e| kind(e) == "TOOL_CALL_START").collect();
    let parents: Vec<_> = starts.iter().map(|e| text(e, "parentMessageId")).collect();
    let texts: Vec<_> =
        events.iter().filter(|e| kind(e) == "TEXT_MESSAGE_START").map(|e| text(e, "messageId")).collect();
    assert_eq!((parents[0], parents[1]), (texts[0], texts[0]));
    assert!(parents[2] != texts[0] && parents[2] != texts[1], "behind a result a call has a message of its own");
    let ids: Vec<_> = starts.iter().map(|e| text(e, "toolCallId")).collect();
    assert_eq!(ids, ["1", "1#2", "2"]);
}
