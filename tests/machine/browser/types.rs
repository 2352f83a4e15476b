//! The generated types of the API (`examples/clients`): what a gateway really answers is of these types, in TypeScript by its
//! compiler and in Python by pydantic, with no field too many or too few.

use std::process::Stdio;

use lastword::turn::frame::Frame;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

use super::page::has_browser;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::within;
use crate::support::{Db, python_clients, repository};

crate::newest! {
    what_is_answered_is_of_the_generated_types,
}

/// The names of types, and answers that are to be of them.
async fn answers(db: &Db) -> Vec<(String, Value)> {
    let gateway = Gateway::start(db).await;
    let client = gateway.client();
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut found = Vec::new();
    let (status, submitted) = client.try_submit("c", "m", "hello").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let turn = worker.turn().await.turn_id;
    let frames = vec![
        Frame::ToolCall { id: "1".into(), name: "n".into(), arguments: json!({"a": 1}) },
        Frame::ToolResult { id: "1".into(), result: json!([1, "b"]) },
        Frame::Progress { message: "half".into() },
        Frame::Data { name: "n".into(), value: json!({"b": null}) },
        Frame::text("hello"),
    ];
    worker.output(turn, 0, frames).await.expect("taken");
    worker.end(turn, 9).await.expect("accepted");
    let failed = client.submit("c", "m2", "hello").await.turn_id;
    worker.this_turn(failed).await;
    worker.fail(failed, 0).await.expect("accepted");
    found.push(("Submitted", submitted));
    for (name, path) in [
        ("RecordView", format!("/v1/turns/{turn}")),
        ("RecordView", format!("/v1/turns/{failed}")),
        ("Page", "/v1/conversations/c/turns".into()),
        ("Page", "/v1/turns".into()),
        ("ConversationPage", "/v1/conversations".into()),
        ("AgentPage", "/v1/agents".into()),
        ("Problem", "/v1/conversations/none/turns".into()),
    ] {
        found.push((name, client.get(&path).await.1));
    }
    found.push(("TicketRequest", json!({"path": "/v1/turns"})));
    found.push(("IssuedTicket", client.call(Method::POST, "/v1/streams/tickets", Some(json!({}))).await.1));
    let mut found: Vec<(String, Value)> = found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    for ended in [turn, failed] {
        for event in client.turn_stream(ended, None).await.rest().await.0 {
            let name = match event.name.as_str() {
                "error" | "agent-error" => "ErrorEvent",
                "complete" => "CompleteEvent",
                "text" => "TextEvent",
                "tool-call" => "ToolCallEvent",
                "tool-result" => "ToolResultEvent",
                "progress" => "ProgressEvent",
                "data" => "DataEvent",
                other => panic!("{other} has no type"),
            };
            found.push((name.to_owned(), event.data));
        }
    }
    found.push(("ErasedView".into(), client.call(Method::DELETE, "/v1/conversations/c", None).await.1));
    found
}

async fn what_is_answered_is_of_the_generated_types(db: Db) {
    let answers = answers(&db).await;
    let directory = tempfile::tempdir().expect("a directory");
    if has_browser("the TypeScript types are not tried") {
        let types = repository("examples/clients/lastword");
        let mut source = format!("import type {{ components }} from {:?};\n", types);
        for (i, (name, value)) in answers.iter().enumerate() {
            source += &format!("export const _{i}: components[\"schemas\"][{name:?}] = {value};\n");
        }
        let path = directory.path().join("answers.ts");
        std::fs::write(&path, source).expect("writes");
        let compiler = repository("tests/clients/browser/node_modules/typescript/bin/tsc");
        let args = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"];
        let run = Command::new("node").arg(compiler).args(args).arg(&path).stdin(Stdio::null()).output();
        let output = within("the compiler", run).await.expect("node runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    if let Some(python) = python_clients("the Python types are not tried") {
        let path = directory.path().join("answers.json");
        std::fs::write(&path, serde_json::to_string(&answers).expect("JSON")).expect("writes");
        let program = "import json, sys\nsys.path.insert(0, sys.argv[1])\nimport lastword_types\nfrom pydantic import ConfigDict, TypeAdapter\n\
            for name, value in json.load(open(sys.argv[2])):\n    kind = getattr(lastword_types, name)\n    \
            kind.__pydantic_config__ = ConfigDict(extra='forbid')\n    TypeAdapter(kind).validate_python(value)\n";
        let run = Command::new(python).args(["-c", program]).arg(repository("examples/clients")).arg(&path).output();
        let output = within("Python", run).await.expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
