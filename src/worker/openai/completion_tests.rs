use super::*;
use serde_json::json;

/// Takes these events; what was shown, and the words of the first failure.
fn take(completion: &mut Completion, events: &[(&str, Value)]) -> (String, Option<ServerWords>) {
    let mut shown = String::new();
    for (name, data) in events {
        let data = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
        match completion.event(name, &data) {
            Ok(CompletionEvent::Frames(frames)) => frames.iter().for_each(|frame| match frame {
                Frame::Text { text } => shown.push_str(text),
                other => shown.push_str(&format!("<{}>", other.event())),
            }),
            Ok(CompletionEvent::Done) => shown.push_str("<done>"),
            Err(words) => return (shown, Some(words)),
        }
    }
    (shown, None)
}

fn text(text: &str) -> (&'static str, Value) {
    ("", json!({"choices": [{"delta": {"content": text}, "finish_reason": null}]}))
}

fn finish(reason: Value) -> (&'static str, Value) {
    ("", json!({"choices": [{"delta": {}, "finish_reason": reason}]}))
}

const END: (&str, Value) = ("", Value::Null);

fn done() -> (&'static str, Value) {
    ("", json!("[DONE]"))
}

#[test]
fn only_proof_makes_a_completion_whole() {
    for (events, whole) in [
        (vec![text("a"), finish(json!("stop"))], true),
        (vec![text("a"), finish(json!("LENGTH "))], true),
        (vec![text("a"), done()], true),
        (vec![text("a")], false),
        (vec![done()], false),
        (vec![text("a"), finish(json!("")), done()], false),
        (vec![text("a"), finish(json!("null")), done()], false),
        (vec![text("a"), finish(json!("")), finish(json!("stop"))], true),
        (vec![text("a"), finish(json!(5)), done()], true),
    ] {
        let mut completion = Completion::default();
        assert_eq!(take(&mut completion, &events).1, None);
        assert_eq!(completion.is_whole(), whole, "{events:?}");
    }
    let mut completion = Completion::default();
    take(&mut completion, &[text("a"), finish(json!("length")), finish(json!("stop"))]);
    assert_eq!(completion.finish_reason(), Some("length"), "the first one");
}

#[test]
fn what_is_not_understood_fails_with_its_words() {
    for (name, data, code, words) in [
        ("", json!({"error": {"message": "boom", "code": 503}}), Some(503), "boom"),
        ("", json!({"error": {"message": "boom", "code": "429"}}), Some(429), "boom"),
        ("", json!({"error": {"message": "boom", "code": "context_length_exceeded"}}), None, "context_length_exceeded"),
        ("", json!({"error": "boom"}), None, "boom"),
        ("", json!({"error": true, "message": "boom"}), None, "boom"),
        ("", json!({"errors": [{"message": "boom", "status": 400}]}), Some(400), "boom"),
        ("", json!({"object": "error", "message": "boom", "code": 500}), Some(500), "boom"),
        ("", json!({"type": "error", "message": "boom"}), None, "boom"),
        ("", json!({"detail": "boom"}), None, "boom"),
        (
            "",
            json!({"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "boom"}}]}),
            Some(502),
            "boom",
        ),
        ("", json!({"choices": "boom"}), None, "boom"),
        ("", json!({"choices": [{"delta": {"content": 5}}], "id": "boom"}), None, "boom"),
        ("error", json!("boom"), None, "boom"),
        ("error", json!({"message": "boom", "status": 401}), Some(401), "boom"),
        ("error", json!(""), None, "an error without words"),
        ("", json!("boom"), None, "boom"),
        ("", json!(["boom"]), None, "boom"),
        ("", json!("{\"choices\": [boom"), None, "boom"),
        ("other", json!("boom"), None, "boom"),
        ("", json!({"choices": [{"delta": {"content": "x"}, "finish_reason": "abort"}], "id": "boom"}), None, "abort"),
    ] {
        let mut completion = Completion::default();
        let (_, failed) = take(&mut completion, &[text("a"), (name, data.clone())]);
        let failed = failed.unwrap_or_else(|| panic!("{data} passed"));
        assert_eq!(failed.code, code, "{data}");
        assert!(failed.words.contains(words) && failed.words.len() <= WORDS_BYTES, "{data}: {failed:?}");
        assert!(!completion.is_whole());
    }
}

#[test]
fn what_says_nothing_is_passed_over() {
    let quiet = [
        ("ping", json!("keep-alive")),
        ("ping", json!({"type": "ping"})),
        ("heartbeat", json!("")),
        ("", json!("")),
        ("", json!("  ")),
        ("", json!({"type": "ping"})),
        ("", json!({})),
        ("", json!("null")),
        ("", json!({"choices": [], "usage": {"total_tokens": 2}})),
        ("", json!({"choices": null, "usage": {}})),
        ("", json!({"choices": [], "prompt_filter_results": []})),
        ("", json!({"id": "c", "object": "chat.completion.chunk", "error": null})),
        ("", json!({"choices": [{"delta": {"reasoning_content": "hm", "content": null}}], "error": {}})),
        (
            "",
            json!({"choices": [{"delta": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}}]}),
        ),
        ("", json!({"choices": [{"index": 1, "delta": {"content": "another"}}]})),
        ("", json!({"choices": [{"delta": null}]})),
    ];
    for event in quiet {
        let mut completion = Completion::default();
        let events = [text("a"), event.clone(), text("b"), finish(json!("stop"))];
        assert_eq!(take(&mut completion, &events), ("ab".into(), None), "{event:?}");
        assert!(completion.is_whole());
    }
}

#[test]
fn text_is_what_the_model_said_in_whatever_form() {
    let delta = |delta: Value| ("", json!({"choices": [{"delta": delta}]}));
    for (events, expected) in [
        (vec![delta(json!({"content": [{"type": "text", "text": "hel"}, "lo"]}))], "hello"),
        (vec![delta(json!({"content": {"type": "text", "text": "hello"}}))], "hello"),
        (vec![delta(json!({"refusal": "I can't "})), delta(json!({"refusal": "help."}))], "I can't help."),
        (
            vec![
                ("", json!("{\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}")),
                delta(json!({"role": "assistant"})),
                ("", json!("{\"choices\":[{\"delta\":{\"content\":\"\\ude00\"}}]}")),
            ],
            "😀",
        ),
        (vec![("message", text("named").1), ("chat.completion.chunk", text(" too").1)], "named too"),
        (vec![text("a"), ("", json!({"choices": [{"message": {"content": "all of it"}}]}))], "a"),
        (vec![END, text("a")], "a"),
    ] {
        let mut completion = Completion::default();
        assert_eq!(take(&mut completion, &events), (expected.into(), None));
        assert!(completion.has_begun() && !completion.is_empty());
    }
    let mut completion = Completion::default();
    take(&mut completion, &[("", json!("{\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}"))]);
    assert!(completion.is_empty());
    assert_eq!(completion.rest(), [Frame::text("\u{fffd}")], "half a character stays one");
}

#[test]
fn a_document_is_a_completion_or_an_error() {
    let whole = json!({"choices": [{"message": {"content": "hi", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
                                    "finish_reason": "stop"}]});
    let mut completion = Completion::default();
    let frames = completion.document(&whole.to_string()).expect("understood");
    assert_eq!(frames.iter().map(Frame::event).collect::<Vec<_>>(), ["text", "tool-call"]);
    assert!(completion.is_whole() && !completion.is_empty());
    for (document, code) in [
        (r#"{"error": {"message": "no", "code": 404}}"#, Some(404)),
        (r#"[{"error": {"code": 400}}]"#, Some(400)),
        ("{", None),
        ("[]", None),
        ("{\"a\": 1}", None),
    ] {
        let mut completion = Completion::default();
        assert_eq!(completion.document(document).expect_err(document).code, code, "{document}");
        assert!(!completion.has_begun());
    }
}

#[test]
fn tool_calls_are_told_when_the_model_has_finished() {
    let call = (
        "",
        json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}}]}),
    );
    let mut completion = Completion::default();
    assert_eq!(take(&mut completion, std::slice::from_ref(&call)), (String::new(), None));
    assert_eq!(take(&mut completion, &[finish(json!("tool_calls"))]), ("<tool-call>".into(), None));
    assert!(!completion.is_empty() && completion.rest().is_empty());
    let mut completion = Completion::default();
    take(&mut completion, &[call]);
    assert_eq!(completion.rest().len(), 1, "also where no reason is given");
}
