//! The built binary against a scripted gateway that speaks `docs/api.md` over real connections: what a person or a
//! script sees on stdout, on stderr and as the exit code.

mod stub;

use std::process::{Output, Stdio};

use stub::{Stub, complete, error, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::support::LASTWORD;
use crate::support::process::signal;
use crate::support::wait::{BOUND, within};

fn lastword(stub: &Stub, args: &[&str]) -> Command {
    let mut command = Command::new(LASTWORD);
    command.args(args).env_clear().env("LASTWORD_GATEWAY_URL", stub.url()).env("LASTWORD_AGENT", "bc");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn finish(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = within("the end of the program", child.wait_with_output()).await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn run(stub: &Stub, args: &[&str]) -> (Option<i32>, String, String) {
    finish(lastword(stub, args).spawn().unwrap()).await
}

#[tokio::test]
async fn a_piped_reply_is_the_text_alone() {
    let stub = Stub::start(vec![text("4"), stub::progress("working"), text("2\n"), complete("reply")]).await;
    assert_eq!(run(&stub, &["chat", "6*7"]).await, (Some(0), "42\n".into(), String::new()));
    assert_eq!(stub.submits()[0]["message"], "6*7");
    assert_eq!(stub.submits()[0]["agent"], "bc");
}

#[tokio::test]
async fn stdin_is_the_message_when_there_is_none() {
    for args in [&["chat"][..], &["chat", "-"]] {
        let stub = Stub::start(vec![text("ok"), complete("reply")]).await;
        let mut child = lastword(&stub, args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all("a\n\u{e4}\n".as_bytes()).await.unwrap();
        assert_eq!(finish(child).await, (Some(0), "ok".into(), String::new()));
        assert_eq!(stub.submits()[0]["message"], "a\n\u{e4}\n");
    }
}

#[tokio::test]
async fn an_error_is_told_with_its_reason_and_exits_1() {
    let mut log = vec![text("par")];
    log.extend(error("OutOfMemory", "the agent ran out of memory", true));
    let stub = Stub::start(log).await;
    let (code, stdout, stderr) = run(&stub, &["chat", "x"]).await;
    assert_eq!((code, stdout.as_str()), (Some(1), "par"));
    assert!(stderr.starts_with("error: OutOfMemory: the agent ran out of memory\nhint: "), "{stderr}");
}

#[tokio::test]
async fn aborted_and_closed_connections_lose_and_repeat_nothing() {
    let log = vec![text("a"), text("b"), text("c"), text("\u{20ac}"), complete("reply")];
    for clean in [false, true] {
        let stub = Stub::start(log.clone()).await;
        stub.cut(&[1, 1, 3, 4], clean);
        let (code, stdout, stderr) = run(&stub, &["chat", "x"]).await;
        assert_eq!((code, stdout.as_str()), (Some(0), "abc\u{20ac}"), "{stderr}");
        assert_eq!(stub.resumed(), [None, Some(1), Some(1), Some(3), Some(4)], "clean: {clean}");
    }
}

#[tokio::test]
async fn a_stream_with_a_byte_order_mark_and_other_line_ends_is_read() {
    let stub = Stub::start(vec![text("4"), text("2\n"), complete("reply")]).await;
    stub.write_otherwise();
    assert_eq!(run(&stub, &["chat", "6*7"]).await, (Some(0), "42\n".into(), String::new()));
    assert_eq!(stub.resumed(), [None], "on one connection");
}

#[tokio::test]
async fn an_unknown_arm_is_sent_again_under_the_same_id() {
    let stub = Stub::start(vec![text("ok"), complete("reply")]).await;
    stub.refuse(&[503, 502, 503]);
    let (code, stdout, stderr) = run(&stub, &["chat", "x"]).await;
    assert_eq!((code, stdout.as_str()), (Some(0), "ok"), "{stderr}");
    let submits = stub.submits();
    assert_eq!(submits.len(), 4);
    assert!(submits.iter().all(|submit| submit["messageId"] == submits[0]["messageId"]), "{submits:?}");
}

#[tokio::test]
async fn a_refusal_is_told_once_and_not_repeated() {
    let stub = Stub::start(vec![]).await;
    for (status, word) in [(404, "no such thing"), (429, "hint: "), (401, "lastword keys create"), (409, "409")] {
        stub.refuse(&[status]);
        let before = stub.submits().len();
        let (code, stdout, stderr) = run(&stub, &["chat", "x"]).await;
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{status}: {stderr}");
        assert_eq!(stub.submits().len(), before + 1);
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_there_ends_in_time_with_a_hint() {
    let stub = Stub::start(vec![]).await;
    let args = ["chat", "--gateway", "http://127.0.0.1:1", "--retry-seconds", "1", "x"];
    let (code, stdout, stderr) = run(&stub, &args).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.contains("error: cannot reach the gateway at http://127.0.0.1:1/: Connection refused\nhint: "),
        "{stderr}"
    );
}

#[tokio::test]
async fn json_prints_each_event() {
    let stub =
        Stub::start(vec![text("a"), stub::frame("weather", serde_json::json!({"rain": true})), complete("reply")])
            .await;
    let (code, stdout, _) = run(&stub, &["chat", "--json", "x"]).await;
    assert_eq!(code, Some(0));
    let events: Vec<serde_json::Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["connected", "text", "weather", "complete"]);
    assert_eq!((&events[1]["data"]["text"], &events[1]["id"]), (&"a".into(), &"1".into()));
}

#[tokio::test]
async fn what_cannot_be_is_said_before_anything_is_sent() {
    let stub = Stub::start(vec![]).await;
    for args in [&["chat", ""][..], &["chat", "--agent", "", "x"], &["chat", "-c", "..", "x"], &["chat", "-"]] {
        let (code, _, stderr) = run(&stub, args).await;
        assert_eq!(code, Some(1), "{args:?}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
    assert!(stub.submits().is_empty());
}

#[tokio::test]
async fn ctrl_c_cancels_the_turn_and_shows_its_last_word() {
    let stub = Stub::start(vec![text("so far")]).await;
    let mut child = lastword(&stub, &["chat", "x"]).spawn().unwrap();
    let mut first = [0; 6];
    within("the first words", child.stdout.as_mut().unwrap().read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"so far");
    signal(child.id().unwrap(), rustix::process::Signal::INT);
    let (code, _, stderr) = finish(child).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("error: Cancelled: "), "{stderr}");
}

#[tokio::test]
async fn turns_are_listed_shown_and_cancelled() {
    let stub = Stub::start(vec![]).await;
    let (code, stdout, stderr) = run(&stub, &["turns", "list", "--phase", "failed"]).await;
    assert_eq!((code, stdout.lines().count()), (Some(0), 1 + stub::RECORDS), "{stdout}{stderr}");
    assert!(stdout.starts_with("TURN  ") && stdout.contains("OutOfMemory"), "{stdout}");
    let (_, stdout, _) = run(&stub, &["turns", "list", "-o", "json", "--limit", "3"]).await;
    let listed: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(listed["turns"].as_array().unwrap().len(), 3);
    let turn = stub.turn.to_string();
    let (code, stdout, _) = run(&stub, &["turns", "show", &turn]).await;
    assert_eq!(code, Some(0));
    assert!(stdout.contains("Detail:\n  exit code 137\n"), "{stdout}");
    let (code, stdout, _) = run(&stub, &["turns", "cancel", &turn]).await;
    assert_eq!((code, stdout), (Some(0), format!("turn {turn} had ended before: Failed (OutOfMemory)\n")));
}

/// Under `script`, so that the binary has a terminal.
#[tokio::test]
async fn a_conversation_is_held_at_the_terminal() {
    let stub = Stub::start(vec![text("forty-two"), complete("reply")]).await;
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{LASTWORD} chat"), "/dev/null"]).env_clear();
    command.env("LASTWORD_GATEWAY_URL", stub.url()).env("LASTWORD_AGENT", "bc").env("TERM", "xterm");
    command.env("XDG_STATE_HOME", state.path()).env("PATH", std::env::var_os("PATH").unwrap()).env("SHELL", "/bin/sh");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = String::new();
    for (typed, answered) in
        [("", "\u{203a} "), ("what is 6*7?\r", "forty-two"), ("/help\r", "/history "), ("/quit\r", "")]
    {
        stdin.write_all(typed.as_bytes()).await.unwrap();
        seen.clear();
        let end = tokio::time::Instant::now() + BOUND;
        while !seen.contains(answered) {
            let mut bytes = [0; 4096];
            let read = tokio::time::timeout_at(end, stdout.read(&mut bytes)).await;
            let read = read.unwrap_or_else(|_| panic!("no {answered:?} in time: {seen:?}")).unwrap();
            assert!(read > 0, "it ended before {answered:?}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }
    let status = within("the end of the program", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(stub.submits()[0]["message"], "what is 6*7?");
    let history = std::fs::read_to_string(state.path().join("lastword/chat_history")).unwrap();
    assert!(history.contains("what is 6*7?"), "{history}");
}

#[tokio::test]
async fn init_writes_what_other_commands_read() {
    let stub = Stub::start(vec![]).await;
    let dir = tempfile::tempdir().unwrap();
    let init = |args: &[&str]| lastword(&stub, args).current_dir(dir.path()).spawn().unwrap();
    let (code, _, stderr) = finish(init(&["init", "--yes"])).await;
    assert_eq!(code, Some(0), "{stderr}");
    let file = dir.path().join("lastword.env");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("LASTWORD_DATABASE_URL=\"/") && written.contains("/.lastword\""), "{written}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (code, _, stderr) = finish(init(&["init", "--yes"])).await;
    assert!(code == Some(1) && stderr.contains("--force"), "{stderr}");
    assert_eq!(finish(init(&["init", "--embedded", "elsewhere", "--force"])).await.0, Some(0));
    assert!(std::fs::read_to_string(&file).unwrap().contains("/elsewhere\""));

    std::fs::write(&file, "LASTWORD_AGENT=from-file\n").unwrap();
    let stub = Stub::start(vec![text("ok"), complete("reply")]).await;
    let mut chat = lastword(&stub, &["chat", "x"]);
    let (code, _, stderr) = finish(chat.env_remove("LASTWORD_AGENT").current_dir(dir.path()).spawn().unwrap()).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stub.submits()[0]["agent"], "from-file");
}
