//! `lastword worker exec`: what a program does, and what becomes of it.

use std::path::Path;
use std::time::{Duration, Instant};

use lastword::wire::MAX_FRAME_BYTES;

use super::*;
use crate::support::process::is_alive;
use crate::support::repository;
use crate::support::wait::eventually;

async fn sh(script: &str, message: &str) -> (Vec<Frame>, Outcome) {
    Bench::start(&["exec", "--", "sh", "-c", script]).await.turn(message).await
}

/// Reason and detail of a script's failure.
async fn fails(script: &str) -> (String, String) {
    let failure = failure(sh(script, "m").await.1);
    (failure.reason.to_string(), failure.detail.unwrap_or_default())
}

#[tokio::test]
async fn a_reply_is_what_was_printed() {
    let (frames, outcome) = sh("read m; echo \"$m!\"", "gr\u{fc}\u{df}e").await;
    assert_eq!((text(&frames).as_str(), outcome), ("gr\u{fc}\u{df}e!\n", Outcome::Reply));
}

#[tokio::test]
async fn a_programs_failure_names_its_cause() {
    let (reason, detail) = fails("echo half; echo oops >&2; exit 7").await;
    assert_eq!((reason.as_str(), detail.as_str()), ("AgentError", "exit code 7\noops"));
    let (reason, detail) = fails("kill -SEGV $$").await;
    assert_eq!(reason, "WorkerExited");
    assert!(detail.contains("SIGSEGV"), "{detail}");
    let (reason, detail) = fails("exit 0").await;
    assert_eq!((reason.as_str(), detail.as_str()), ("AgentError", "exit code 0, but nothing on stdout"));
    for program in ["/nonexistent/agent", "/etc/passwd"] {
        let failure = failure(Bench::start(&["exec", "--", program]).await.turn("m").await.1);
        assert_eq!(failure.reason.to_string(), "StartFailed");
    }
}

#[tokio::test]
async fn any_bytes_of_a_program_become_text() {
    let python = "import sys\nfor b in 'a\u{fc}\u{1f642}'.encode():\n sys.stdout.buffer.write(bytes([b]));\
                  sys.stdout.flush()\nsys.stdout.buffer.write(b'\\0\\xff')";
    let bench = Bench::start(&["exec", "--", "python3", "-c", python]).await;
    let (frames, outcome) = bench.turn("m").await;
    assert_eq!((text(&frames).as_str(), outcome), ("a\u{fc}\u{1f642}\u{fffd}\u{fffd}", Outcome::Reply));
}

#[tokio::test]
async fn lines_of_json_are_frames() {
    let script = r#"echo '{"type":"tool-call","id":"1","name":"f","arguments":{"x":1}}'; echo plain;
                    echo '{"type":"text","text":"t"}'"#;
    let bench = Bench::start(&["exec", "--output", "json-lines", "--", "sh", "-c", script]).await;
    let (frames, outcome) = bench.turn("m").await;
    let call = Frame::ToolCall { id: "1".into(), name: "f".into(), arguments: serde_json::json!({"x": 1}) };
    assert_eq!((frames, outcome), (vec![call, Frame::text("plain\nt")], Outcome::Reply));
}

#[tokio::test]
async fn the_message_may_be_an_argument() {
    let bench = Bench::start(&["exec", "--arg-message", "--", "printf", "%s|"]).await;
    assert_eq!(text(&bench.turn("a b").await.0), "a b|");
}

#[tokio::test]
async fn the_program_knows_its_turn_but_no_secret() {
    let (frames, _) = sh("env | grep -e ^LASTWORD_ -e ^TRACEPARENT=", "m").await;
    let env = text(&frames);
    for name in ["CONVERSATION=conformance", "ID=", "USER=somebody", "MESSAGE_ID=message-"] {
        assert!(env.contains(&format!("LASTWORD_TURN_{name}")), "{env}");
    }
    assert!(env.contains("TRACEPARENT=00-4bf"), "{env}");
    assert!(!env.contains("LASTWORD_CREDENTIAL") && !env.contains(SECRET), "{env}");
}

#[tokio::test]
async fn the_program_cannot_read_the_workers_environment() {
    // The program's parent is its keeper, and the worker is the keeper's.
    let script = "worker=$(sed -n 's/^PPid:\\t*//p' /proc/$PPID/status)
        for pid in $PPID $worker; do
            if cat /proc/$pid/environ > /dev/null 2>&1; then echo readable; else echo hidden; fi
        done";
    let exec = [LASTWORD, "worker", "exec", "--", "sh", "-c", script];
    // Root gets what a container's root has by default: none of these, which may read everything.
    let root = rustix::process::geteuid().is_root();
    let wrap: &[&str] = if root { &["setpriv", "--bounding-set=-sys_ptrace,-perfmon,-sys_admin"] } else { &[] };
    let bench = Bench::launch(&[wrap, &exec].concat(), |_| {}).await;
    assert_eq!(text(&bench.turn("m").await.0), "hidden\nhidden\n");
}

#[tokio::test]
async fn a_grandchild_that_holds_stdout_delays_nothing() {
    let begin = Instant::now();
    let (frames, outcome) = sh("echo done; sleep 100 &", "m").await;
    assert_eq!((text(&frames).as_str(), outcome), ("done\n", Outcome::Reply));
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_flood_waits_for_the_gateway_and_ends_at_the_limit() {
    let bench = Bench::with(&["exec", "--", "sh", "-c", "yes"], |state| state.hold = true).await;
    let turn = bench.gateway.push("m");
    // It asks for the durable offset by empty posts, and sends nothing more.
    let (posts, held) = bench.see(turn, |log| (log.span.end() >= 1_000_000).then(|| (log.posts, log.span.end()))).await;
    let later = bench.see(turn, |log| (log.posts >= posts + 6).then(|| log.span.end())).await;
    assert!(later < held + 1024 * 1024, "{held} {later}");
    bench.gateway.with(|state| state.hold = false);
    let (_, outcome) = bench.over(turn).await;
    assert_eq!(failure(outcome).message, "the agent's output is too long");
}

#[tokio::test]
async fn a_cancelled_program_is_killed_even_if_it_ignores_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("trap '' TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done", file.display());
    let bench = Bench::start(&["exec", "--kill-seconds", "1", "--", "sh", "-c", &script]).await;
    let turn = bench.gateway.push("m");
    let pid = pid_in(&file).await;
    bench.gateway.cancel(turn);
    dead(pid).await;
    assert_eq!(bench.gateway.with(|state| state.turns[&turn].finishes.len()), 0);
}

#[tokio::test]
async fn a_killed_worker_takes_its_program_along() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 100", file.display());
    let mut bench = Bench::start(&["exec", "--", "sh", "-c", &script]).await;
    bench.gateway.push("m");
    let pid = pid_in(&file).await;
    bench.worker.kill().await.unwrap();
    dead(pid).await;
}

#[tokio::test]
async fn a_message_is_never_an_option_of_a_program() {
    let bench = Bench::start(&["exec", "--arg-message", "--", "grep", "-c", "x"]).await;
    for message in ["--help", "-f", "-", "--version"] {
        let failure = failure(bench.turn(message).await.1);
        assert_eq!(failure.reason.to_string(), "AgentError", "{message}");
        assert!(failure.message.contains("begins with a dash"), "{message}: {failure:?}");
        assert!(failure.detail.as_ref().unwrap().contains("--"), "{failure:?}");
    }
    let bench = Bench::start(&["exec", "--arg-message", "--", "sh", "-c", "printf '%s|' \"$@\"", "sh", "--"]).await;
    assert_eq!(text(&bench.turn("--help").await.0), "--|--help|");
}

#[tokio::test]
async fn a_message_that_is_too_long_for_an_argument_is_told_its_size() {
    let bench = Bench::start(&["exec", "--arg-message", "--", "sh", "-c", "echo ${#0}"]).await;
    let longest = 128 * 1024 - 1;
    assert_eq!(text(&bench.turn(&"x".repeat(longest)).await.0), format!("{longest}\n"));
    let failure = failure(bench.turn(&"x".repeat(longest + 1)).await.1);
    assert_eq!(failure.reason.to_string(), "AgentError");
    assert_eq!(failure.message, "The message has 131072 bytes; this agent takes at most 131071.");
}

/// The case `jl1.py`: a number is a tool result of so many bytes, a word an array where a frame is expected.
#[tokio::test]
async fn a_frame_has_one_limit_and_json_is_never_the_reply() {
    let case = repository("tests/programs/jl1.py");
    let words = ["exec", "--output", "json-lines", "--", "python3", case.to_str().unwrap()];
    let bench = Bench::start(&words).await;
    // The rest of the frame's JSON: {"type":"tool-result","id":"1","result":"…"}
    let rest = r#"{"type":"tool-result","id":"1","result":""}"#.len();
    for bytes in [10, 600_000, MAX_FRAME_BYTES - rest] {
        let (frames, outcome) = bench.turn(&bytes.to_string()).await;
        assert_eq!((frames.len(), outcome), (2, Outcome::Reply), "{bytes}");
        assert_eq!(text(&frames), "t");
    }
    for bytes in [MAX_FRAME_BYTES - rest + 1, MAX_FRAME_BYTES + 1, 1_500_000, 5_000_000] {
        let (frames, outcome) = bench.turn(&bytes.to_string()).await;
        let failure = failure(outcome);
        assert_eq!((text(&frames).as_str(), failure.reason.to_string().as_str()), ("", "AgentError"), "{bytes}");
        assert!(failure.detail.as_ref().unwrap().contains("1048576"), "the limit is named: {failure:?}");
    }
    for (message, said) in [
        ("seqtext", "[\"text\",\"hello\"]\n"),
        ("seqprog", "[\"progress\",\"50%\"]\nanswer\n"),
        ("seqdata", "[\"data\",\"n\",[1,2]]\nanswer\n"),
    ] {
        let (frames, outcome) = bench.turn(message).await;
        assert_eq!((frames, outcome), (vec![Frame::text(said)], Outcome::Reply), "{message}: an array is text");
    }
}

async fn pid_in(file: &Path) -> u32 {
    eventually("the program's pid", async || std::fs::read_to_string(file).ok()?.trim().parse().ok()).await
}

async fn dead(pid: u32) {
    eventually("the program's end", async || !is_alive(pid)).await;
}
