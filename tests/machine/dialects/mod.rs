//! Other people's client protocols, spoken by their own client libraries (`tests/clients/node`), and looked at byte by byte.

mod agui;
mod bytes;
mod chained;
mod documented;
mod openai;
mod ui;
mod walls;

use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use lastword::turn::terminal::{Failure, Outcome};
use lastword::wire::Finish;
use serde_json::{Value, json};

use crate::support::fake_worker::{FakeWorker, whole_reply};

/// Output of each kind; the text is `see 3`, and the log has nine units.
fn of_each_kind() -> Vec<Frame> {
    vec![
        Frame::text("see "),
        Frame::ToolCall { id: "call".into(), name: "sum".into(), arguments: json!({"a": 1, "b": 2}) },
        Frame::ToolResult { id: "call".into(), result: json!(3) },
        Frame::Progress { message: "half".into() },
        Frame::Data { name: "chart".into(), value: json!([1, null]) },
        Frame::text("3"),
    ]
}

/// The length of [`of_each_kind`] in log units.
const EACH_KIND: u64 = 9;

/// Has the worker end a turn without output, with this reason.
async fn fail_with(worker: &FakeWorker, turn: TurnId, reason: Reason) {
    let outcome = Outcome::Error(Failure::new(reason));
    let word = Finish { end: 0, tail: None, outcome, ..whole_reply(&[turn], "") };
    worker.finish(&word).await.expect("taken");
}

/// What the lines of a client have under this name.
fn named(lines: &[Value], name: &str) -> Vec<Value> {
    lines.iter().filter_map(|line| line.get(name)).cloned().collect()
}

/// The types of events.
fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect()
}
