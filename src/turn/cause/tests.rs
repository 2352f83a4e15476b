//! One table: what has happened, and what follows from it: the reason, whether trying again can help, and the detail.

use super::container::ContainerEnd;
use super::lease::{Ground, LeaseRecord, LeaseStop, StartCause};
use super::pod::PodPlace;
use super::process::ProcessEnd;
use super::start::Obstacle;
use super::stop::Stopper;
use super::*;
use crate::turn::phase::LeasePhase;
use crate::turn::reason::Reason::{self, *};
use crate::turn::terminal::{Exit, Failure, Outcome};

const YES: bool = true;
const NO: bool = false;

/// What has happened, for the message of a failed row; what [`super`] makes of it; and what that must be: the reason, whether
/// it is retryable, and the detail where one is fixed.
type Row<'a> = (&'a str, Failure, Reason, bool, Option<&'a str>);

#[track_caller]
fn check(rows: Vec<Row>) {
    for (what, failure, reason, retryable, detail) in rows {
        assert_eq!((failure.reason, failure.retryable()), (reason, retryable), "{what}: {failure:?}");
        if let Some(detail) = detail {
            assert_eq!(failure.detail.as_deref(), Some(detail), "{what}");
        }
        let told = &failure.message;
        assert!(
            failure.detail.as_ref().is_none_or(|d| !told.contains(d.as_str())),
            "{what}: a client is told internals"
        );
    }
}

fn code(code: i32) -> ProcessEnd {
    ProcessEnd::Exit(Exit::Code(code))
}

fn signal(signal: i32) -> ProcessEnd {
    ProcessEnd::Exit(Exit::Signal(signal))
}

fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Error(failure) => failure,
        Outcome::Reply => panic!("a reply"),
    }
}

#[test]
fn program() {
    let answer = |ended: ProcessEnd, said, oom, stderr| failed(program::answer(&ended, said, oom, stderr));
    let server = |ended: ProcessEnd, oom| program::server_end(&ended, oom);
    check(vec![
        ("it failed", answer(code(3), true, false, ""), AgentError, YES, Some("exit code 3")),
        ("with words", answer(code(3), true, false, "no"), AgentError, YES, Some("exit code 3\nno")),
        ("silent", answer(code(0), false, false, ""), AgentError, YES, Some("exit code 0, but nothing on stdout")),
        (
            "silent, with words",
            answer(code(0), false, true, "no"),
            AgentError,
            YES,
            Some("exit code 0, but nothing on stdout\nno"),
        ),
        ("crash", answer(signal(11), true, false, ""), WorkerExited, YES, Some("killed by SIGSEGV (signal 11)")),
        ("unnamed", answer(signal(64), true, false, ""), WorkerExited, YES, Some("killed by signal 64")),
        ("killed", answer(signal(9), true, false, ""), WorkerExited, YES, Some("killed by SIGKILL (signal 9)")),
        (
            "out of memory",
            answer(signal(9), true, true, ""),
            OutOfMemory,
            YES,
            Some("killed by the kernel for want of memory"),
        ),
        (
            "out of memory in a shell",
            answer(code(137), true, true, ""),
            OutOfMemory,
            YES,
            Some("exit code 137, and the kernel killed for want of memory"),
        ),
        ("a shell's program killed", answer(code(137), true, false, ""), AgentError, YES, Some("exit code 137")),
        ("failed beside a kill", answer(code(1), true, true, ""), AgentError, YES, Some("exit code 1")),
        ("crashed beside a kill", answer(signal(11), true, true, ""), WorkerExited, YES, None),
        (
            "no status",
            answer(ProcessEnd::Unknown(None), true, false, ""),
            Internal,
            YES,
            Some("the exit status is unknown"),
        ),
        ("odd", answer(ProcessEnd::Otherwise("odd".into()), true, false, ""), WorkerExited, YES, Some("odd")),
        (
            "no program",
            program::not_started("x", "no such file"),
            StartFailed,
            NO,
            Some("cannot start x: no such file"),
        ),
        ("a server left", server(code(0), false), WorkerExited, YES, Some("exit code 0")),
        ("a server failed", server(code(1), false), WorkerExited, YES, Some("exit code 1")),
        ("a server out of memory", server(signal(9), true), OutOfMemory, YES, None),
        (
            "a reply of nothing",
            failed(program::reply(Outcome::Reply, 0)),
            AgentError,
            YES,
            Some("the worker sent a reply without any output"),
        ),
        ("too long", program::too_long(1), AgentError, YES, Some("a turn's output may have at most 1 bytes of text")),
        ("too large a piece", program::output_too_large("at most 1"), AgentError, YES, Some("at most 1")),
        (
            "too long an argument",
            program::argument_too_long(2, 1),
            AgentError,
            YES,
            Some("the kernel takes no longer argument: have the message on stdin"),
        ),
        ("an option", program::looks_like_an_option(), AgentError, YES, None),
        ("refused output", program::output_refused("no"), Internal, YES, Some("no")),
        ("a broken adapter", program::adapter_failed("x"), Internal, YES, Some("the adapter failed: x")),
        ("stopped with another", program::stopped_together(), AgentError, YES, None),
        ("nothing to echo", program::nothing_to_echo(), AgentError, YES, None),
    ]);
    assert_eq!(program::answer(&code(0), true, true, "a warning"), Outcome::Reply);
    assert_eq!(program::reply(Outcome::Reply, 1), Outcome::Reply);
    let word = Outcome::Error(Failure::new(Internal));
    assert_eq!(program::reply(word.clone(), 0), word, "an error needs no output");
    assert_eq!(answer(code(0), false, false, "").message, "The agent gave no answer.");
    assert_eq!(server(code(1), false).message, WorkerExited.client_message());
    for ended in [Exit::Code(0), Exit::Code(3), Exit::Signal(11)] {
        assert_eq!(answer(ProcessEnd::Exit(ended), false, false, "").exit, Some(ended), "kept for the termination log");
    }
}

#[test]
fn model() {
    let refused = |code: Option<u16>, words: &str| model::refused(model::refusal(code, words), false, words);
    let told = |code: u16, words| (words, refused(Some(code), words));
    let mut rows: Vec<Row> = Vec::new();
    for (words, failure) in [
        told(301, "moved"),
        told(400, "Unknown parameter: 'mood'"),
        told(401, "Incorrect API key provided"),
        told(402, "Payment Required"),
        told(403, "no access to this model"),
        told(404, "The model parrot does not exist"),
        told(422, "messages: field required"),
        told(429, r#"{"error":{"code":"insufficient_quota"}}"#),
        told(501, "streaming is not implemented"),
        ("model not found", refused(None, "model not found")),
        ("invalid_request_error", refused(None, "invalid_request_error")),
    ] {
        rows.push((words, failure, ModelRejected, NO, Some(words)));
    }
    for (words, failure) in [
        told(408, "timeout"),
        told(429, "Rate limit reached: too many tokens per minute"),
        told(500, "model exploded"),
        told(502, "Bad Gateway"),
        told(503, "model not found in memory, loading"),
        told(529, "overloaded_error"),
        ("overloaded", refused(None, "overloaded")),
        ("what is this", refused(None, "what is this")),
    ] {
        rows.push((words, failure, ModelUnavailable, YES, Some(words)));
    }
    rows.push(("broken off", model::broken_off("cut"), AgentError, YES, Some("cut")));
    rows.push(("empty", model::empty("void"), AgentError, YES, Some("void")));
    check(rows);
    for (code, words) in [
        (Some(400), r#"{"error":{"code":"context_length_exceeded"}}"#),
        (Some(400), "This model's maximum context length is 4096 tokens."),
        (Some(400), "the request exceeds the available context size"),
        (Some(400), "The decoder prompt (length 9000) is longer than the maximum model length of 4096."),
        (Some(400), "prompt is too long: 210000 tokens > 200000 maximum"),
        (Some(422), "`inputs` tokens + `max_new_tokens` must be <= 2048"),
        (Some(500), "context size exceeded"),
        (Some(413), "Payload Too Large"),
        (None, "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."),
    ] {
        assert_eq!(model::refusal(code, words), model::ModelRefusal::TooLong, "{words}");
        for (alone, sentence) in [(false, "start a new one"), (true, "send a shorter one")] {
            let failure = model::refused(model::ModelRefusal::TooLong, alone, words);
            assert_eq!((failure.reason, failure.retryable()), (ModelRejected, NO), "{words}");
            assert!(failure.message.contains(sentence), "{}", failure.message);
        }
    }
}

#[test]
fn process() {
    let end = |ended: ProcessEnd, oom, stderr| process::end(&ended, oom, stderr);
    check(vec![
        ("left", end(code(0), false, ""), WorkerExited, YES, Some("exit code 0")),
        (
            "failed",
            end(code(1), false, "no such file"),
            WorkerExited,
            YES,
            Some("exit code 1; stderr ends:\nno such file"),
        ),
        ("killed", end(signal(9), false, ""), WorkerExited, YES, Some("signal 9 (SIGKILL)")),
        ("unnamed", end(signal(64), false, ""), WorkerExited, YES, Some("signal 64")),
        ("out of memory", end(signal(9), true, ""), OutOfMemory, YES, Some("signal 9 (SIGKILL)")),
        ("stopped beside a kill", end(signal(15), true, ""), WorkerExited, YES, Some("signal 15 (SIGTERM)")),
        ("a shell's word", end(code(137), true, ""), OutOfMemory, YES, Some("exit code 137")),
        ("failed after a kill", end(code(5), true, ""), OutOfMemory, YES, Some("exit code 5")),
        ("left after a kill", end(code(0), true, ""), WorkerExited, YES, Some("exit code 0")),
        (
            "no status",
            end(ProcessEnd::Unknown(Some("x".into())), true, ""),
            WorkerExited,
            YES,
            Some("its exit status could not be had: x"),
        ),
        ("odd", end(ProcessEnd::Otherwise("odd".into()), true, ""), WorkerExited, YES, Some("odd")),
        ("of a former run", process::of_a_former_run(), WorkerExited, YES, Some("lastword was restarted")),
    ]);
    use std::os::unix::process::ExitStatusExt;
    // wait(2) gives a code in the second byte of the status, a signal in the first.
    for (status, ended) in [(0, code(0)), (3 << 8, code(3)), (11, signal(11))] {
        assert_eq!(ProcessEnd::from(std::process::ExitStatus::from_raw(status)), ended);
    }
}

const PLACE: PodPlace = PodPlace { pod: "bot-1", node: Some("node-1") };

#[test]
fn container() {
    let ended = |exit_code, reason, message| ContainerEnd {
        container: "agent",
        exit_code,
        signal: None,
        reason: Some(reason),
        message,
    };
    let end = |code, reason, message, stopped| container::end(PLACE, ended(code, reason, message), stopped);
    let init = |code, reason, stopped| container::init_end(PLACE, ended(code, reason, None), stopped);
    let oom_word = r#"{"reason":"OutOfMemory","detail":"killed by the kernel"}"#;
    let word = r#"{"reason":"AgentError","detail":"exit code 1"}"#;
    check(vec![
        (
            "done",
            end(0, "Completed", None, None),
            WorkerExited,
            YES,
            Some("pod bot-1 on node node-1: container agent: exit code 0"),
        ),
        ("failed", end(1, "Error", None, None), WorkerExited, YES, None),
        (
            "with text",
            end(1, "Error", Some("Traceback\n"), None),
            WorkerExited,
            YES,
            Some("pod bot-1 on node node-1: container agent: exit code 1: Traceback"),
        ),
        (
            "killed",
            end(137, "Error", None, None),
            WorkerExited,
            YES,
            Some("pod bot-1 on node node-1: container agent: exit code 137 (signal 9)"),
        ),
        (
            "out of memory",
            end(137, "OOMKilled", None, None),
            OutOfMemory,
            YES,
            Some("pod bot-1 on node node-1: container agent: exit code 137 (signal 9), OOMKilled"),
        ),
        ("out of memory, deleted", end(137, "OOMKilled", None, Some(Deleted)), OutOfMemory, YES, None),
        ("out of memory, with words", end(137, "OOMKilled", Some(word), None), OutOfMemory, YES, None),
        ("not started", end(128, "StartError", None, None), StartFailed, NO, None),
        ("not started, old", end(127, "ContainerCannotRun", None, Some(Evicted)), StartFailed, NO, None),
        ("unknown", end(137, "ContainerStatusUnknown", None, None), WorkerExited, YES, None),
        ("evicted", end(137, "Error", Some(word), Some(Evicted)), Evicted, YES, None),
        ("deleted", end(143, "Error", None, Some(Deleted)), Deleted, YES, None),
        (
            "words",
            end(137, "Error", Some(oom_word), None),
            OutOfMemory,
            YES,
            Some("pod bot-1 on node node-1: container agent: exit code 137 (signal 9): killed by the kernel"),
        ),
        ("no words of ours", end(1, "Error", Some(r#"{"reason":"Nonsense"}"#), None), WorkerExited, YES, None),
        ("no words", end(1, "Error", Some("{}"), None), WorkerExited, YES, None),
        (
            "init",
            init(1, "Error", None),
            StartFailed,
            NO,
            Some("pod bot-1 on node node-1: init container agent: exit code 1"),
        ),
        ("init out of memory", init(137, "OOMKilled", Some(Deleted)), OutOfMemory, YES, None),
        ("init, deleted", init(143, "Error", Some(Deleted)), Deleted, YES, None),
    ]);
    let adapter = "pod bot-1 on node node-1: container agent: exit code 137 (signal 9)";
    for (words, detail) in [
        (r#"{"reason":"AgentError","detail":"exit code 3","exitCode":3}"#, "exit code 3"),
        (r#"{"reason":"AgentError","detail":"trace","exitCode":3}"#, "the program ended with exit code 3: trace"),
        (r#"{"reason":"AgentError","exitCode":1}"#, "the program ended with exit code 1"),
        (
            r#"{"reason":"AgentError","detail":"exit code 13","exitCode":1}"#,
            "the program ended with exit code 1: exit code 13",
        ),
        (
            r#"{"reason":"WorkerExited","detail":"killed by SIGSEGV (signal 11)","signal":11}"#,
            "killed by SIGSEGV (signal 11)",
        ),
        (r#"{"reason":"WorkerExited","detail":"trace","signal":11}"#, "the program ended with signal 11: trace"),
        (r#"{"reason":"AgentError","detail":"trace","exitCode":"three","signal":null}"#, "trace"),
    ] {
        let cause = end(137, "Error", Some(words), None);
        assert_eq!(cause.detail, Some(format!("{adapter}: {detail}")), "{words}");
    }
}

#[test]
fn pod() {
    let never = |reason, message, stopped| pod::never_ran(PLACE, reason, message, stopped);
    check(vec![
        (
            "refused by its node",
            never("OutOfcpu", Some("no room"), None),
            StartFailed,
            NO,
            Some("pod bot-1 on node node-1: OutOfcpu: no room"),
        ),
        (
            "over",
            never("", None, None),
            StartFailed,
            NO,
            Some("pod bot-1 on node node-1: the pod ended before the worker ran"),
        ),
        ("evicted", never("Evicted", None, pod::ended_by_kubelet("Evicted")), Evicted, YES, None),
        (
            "no node",
            pod::not_scheduled(PodPlace { node: None, ..PLACE }, Some("0/2 nodes")),
            Unschedulable,
            YES,
            Some("pod bot-1: not scheduled: 0/2 nodes"),
        ),
    ]);
    for (status, reason) in [
        ("Evicted", Some(Evicted)),
        ("Terminated", Some(NodeShutdown)),
        ("NodeShutdown", Some(NodeShutdown)),
        ("Shutdown", Some(NodeShutdown)),
        ("Preempting", Some(Preempted)),
        ("Preempted", Some(Preempted)),
        ("NodeLost", Some(NodeLost)),
        ("OutOfcpu", None),
        ("", None),
    ] {
        assert_eq!(pod::ended_by_kubelet(status), reason, "{status}");
    }
    for (condition, message, status, reason) in [
        ("EvictionByEvictionAPI", None, None, Some(Evicted)),
        ("PreemptionByScheduler", None, None, Some(Preempted)),
        ("PreemptionByKubeScheduler", None, None, Some(Preempted)),
        ("DeletionByTaintManager", None, None, Some(NodeLost)),
        ("DeletionByPodGC", None, None, Some(NodeLost)),
        ("SomethingNew", None, Some("Evicted"), None),
        ("TerminationByKubelet", None, None, Some(Evicted)),
        ("TerminationByKubelet", Some("the node's Shutdown"), None, Some(NodeShutdown)),
        ("TerminationByKubelet", Some("Preempted for a critical pod"), None, Some(Preempted)),
        ("TerminationByKubelet", Some("shutdown"), Some("Evicted"), Some(Evicted)),
        ("TerminationByKubelet", None, Some("Terminated"), Some(NodeShutdown)),
    ] {
        assert_eq!(pod::disrupted(condition, message, status), reason, "{condition} {message:?} {status:?}");
    }
}

#[test]
fn start() {
    // `true` in a row: the obstacle may heal; `false`: it is there for good. `None`: nothing is in the way.
    let held = |obstacle: Option<Obstacle>| match obstacle {
        Some(Obstacle::MayHeal(failure)) => Some((true, failure.reason)),
        Some(Obstacle::ForGood(failure)) => Some((false, failure.reason)),
        None => None,
    };
    for (waiting, expected) in [
        ("ContainerCreating", None),
        ("PodInitializing", None),
        ("InvalidImageName", Some((false, ImagePull))),
        ("ErrImageNeverPull", Some((false, ImagePull))),
        ("RunContainerError", Some((false, StartFailed))),
        ("ErrImagePull", Some((true, ImagePull))),
        ("ImagePullBackOff", Some((true, ImagePull))),
        ("ImageInspectError", Some((true, ImagePull))),
        ("RegistryUnavailable", Some((true, ImagePull))),
        ("SignatureValidationFailed", Some((true, ImagePull))),
        ("CreateContainerConfigError", Some((true, StartFailed))),
        ("CreateContainerError", Some((true, StartFailed))),
        ("CrashLoopBackOff", Some((true, StartFailed))),
        ("PreStartHookError", Some((true, StartFailed))),
        ("PostStartHookError", Some((true, StartFailed))),
        ("PreCreateHookError", Some((true, StartFailed))),
    ] {
        assert_eq!(held(pod::waiting(PLACE, "agent", waiting, None)), expected, "{waiting}");
    }
    for (event, message, reason) in [
        ("FailedMount", "", Some(StartFailed)),
        ("FailedAttachVolume", "", Some(StartFailed)),
        ("FailedMapVolume", "", Some(StartFailed)),
        ("FailedCreatePodSandBox", "", Some(StartFailed)),
        ("FailedPodSandBoxStatus", "", Some(StartFailed)),
        ("NetworkNotReady", "", Some(StartFailed)),
        ("FailedKillPod", "", Some(StartFailed)),
        ("FailedScheduling", "", Some(Unschedulable)),
        ("Pulling", "", Some(ImagePull)),
        ("ErrImageNeverPull", "", Some(ImagePull)),
        ("InspectFailed", "", Some(ImagePull)),
        ("Failed", "Error: ErrImagePull", Some(ImagePull)),
        ("BackOff", "Back-off pulling image", Some(ImagePull)),
        ("Failed", "Error: x", None),
        ("BackOff", "restarting", None),
        ("Unhealthy", "", None),
    ] {
        assert_eq!(pod::told(PLACE, event, message).map(|f| f.reason), reason, "{event}");
    }
    for (code, message, heals, reason) in [
        (
            403,
            "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
            true,
            QuotaExceeded,
        ),
        (403, "pods \"a\" is forbidden: status unknown for quota: q", true, QuotaExceeded),
        (403, "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": privileged", false, StartFailed),
        (403, "pods \"a\" is forbidden: error looking up service account ns/default: not found", true, StartFailed),
        (403, "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\"", true, StartFailed),
        (403, "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: agent", false, StartFailed),
        (400, "admission webhook \"w.example\" denied the request: no", false, StartFailed),
        (401, "Unauthorized", true, StartFailed),
        (422, "Pod \"a\" is invalid: spec.containers[0].image: Required value", false, StartFailed),
        (404, "namespaces \"gone\" not found", false, StartFailed),
        (409, "Operation cannot be fulfilled on resourcequotas \"q\": the object has been modified", true, StartFailed),
        (429, "too many requests", true, StartFailed),
        (500, "Internal error occurred: failed calling webhook \"w.example\"", true, StartFailed),
    ] {
        let (healing, failure) = match start::refused(code, message) {
            Obstacle::MayHeal(failure) => (true, failure),
            Obstacle::ForGood(failure) => (false, failure),
        };
        assert_eq!((healing, failure.reason), (heals, reason), "{message}");
        assert_eq!(failure.detail, Some(format!("the pod was refused (status {code}): {message}")));
        assert!(!failure.message.contains(message), "clients are told no internals");
    }
    assert_eq!(held(Some(start::unanswered("away"))), Some((true, StartFailed)));
    check(vec![
        ("impossible", start::impossible("no command"), StartFailed, NO, Some("no command")),
        (
            "a stranger's pod",
            start::name_taken("x"),
            StartFailed,
            NO,
            Some("a pod x that is not of this start exists already"),
        ),
        ("no pod yet", start::stopped_before_made(), StartFailed, NO, Some("it was stopped before its pod was made")),
        ("unsure", start::unsure(), StartFailed, NO, Some("the database was away when the start was written")),
    ]);
}

#[test]
fn lease() {
    use LeasePhase::{Draining, Live, Starting};
    let record = |phase, stop: Option<(Reason, bool)>| LeaseRecord {
        phase,
        stop: stop.map(|(reason, recorded)| LeaseStop { reason, recorded }),
        start: Some(StartCause { reason: Some(ImagePull), detail: Some("no such image".into()) }),
    };
    let found = |reason| Failure::detailed(reason, "found");
    let ends = |record: &LeaseRecord, reason, ground| lease::known_better(record, &found(reason), ground);
    let newer = LeaseRecord { start: Some(StartCause { reason: None, detail: None }), ..record(Starting, None) };
    let unhindered = LeaseRecord { start: None, ..record(Starting, None) };
    let by_proof = |phase, stop, reason| ends(&record(phase, stop), reason, Ground::Proof);
    let by_silence = |phase, stop, reason| ends(&record(phase, stop), reason, Ground::Silence);
    check(vec![
        ("nobody connected", lease::lapsed(Starting), StartFailed, NO, Some("no worker connected within startSeconds")),
        ("silent", lease::lapsed(Live), LeaseLapsed, YES, Some("no heartbeat for a whole lease")),
        ("silent in its drain", lease::lapsed(Draining), LeaseLapsed, YES, Some("no heartbeat for a whole lease")),
        ("drain over", lease::not_drained(), Deleted, YES, Some("not finished within drainSeconds")),
        ("left", lease::left(), WorkerExited, YES, Some("the worker left with the turn in hand")),
        (
            "replaced",
            lease::replaced(),
            WorkerExited,
            YES,
            Some("another incarnation started under the same credential"),
        ),
        ("no cause in time", lease::unexplained(), WorkerExited, YES, Some("the cause was not learnt in time")),
        (
            "left behind",
            lease::died_before(Some(OutOfMemory), Some("the death".into())),
            OutOfMemory,
            YES,
            Some("the death"),
        ),
        ("left behind by a newer version", lease::died_before(None, None), WorkerExited, YES, None),
        ("lost", lease::lost_by_worker(), AgentError, YES, Some("the worker was pushed the turn and does not hold it")),
        // From here on the lease has a record: which of the two knows more, the lease or whoever ends it?
        ("live, exit", by_proof(Live, None, WorkerExited), WorkerExited, YES, Some("found")),
        ("live, proof", by_proof(Live, None, OutOfMemory), OutOfMemory, YES, Some("found")),
        ("live, silence", by_silence(Live, None, LeaseLapsed), LeaseLapsed, YES, Some("found")),
        ("evicted, exit", by_proof(Draining, Some((Evicted, true)), WorkerExited), Evicted, YES, Some("found")),
        ("evicted, proof", by_proof(Draining, Some((Evicted, true)), OutOfMemory), Evicted, YES, Some("found")),
        ("evicted, silence", by_silence(Draining, Some((Evicted, true)), LeaseLapsed), Evicted, YES, Some("found")),
        (
            "evicted, drain over",
            ends(&record(Draining, Some((Evicted, true))), Deleted, Ground::DrainOver),
            Evicted,
            YES,
            Some("found"),
        ),
        ("guessed, exit", by_proof(Live, Some((NodeShutdown, false)), WorkerExited), NodeShutdown, YES, Some("found")),
        ("guessed, proof", by_proof(Live, Some((NodeShutdown, false)), OutOfMemory), OutOfMemory, YES, Some("found")),
        ("guessed, silence", by_silence(Live, Some((NodeShutdown, false)), LeaseLapsed), NodeShutdown, YES, None),
        (
            "guessed, drain over",
            ends(&record(Draining, Some((NodeShutdown, false))), Deleted, Ground::DrainOver),
            NodeShutdown,
            YES,
            None,
        ),
        ("starting, exit", by_proof(Starting, None, WorkerExited), StartFailed, NO, Some("found")),
        ("starting, proof", by_proof(Starting, None, OutOfMemory), OutOfMemory, YES, Some("found")),
        ("starting, late", by_silence(Starting, None, StartFailed), ImagePull, NO, Some("no such image")),
        ("starting, late, unhindered", ends(&unhindered, StartFailed, Ground::Silence), StartFailed, NO, Some("found")),
        ("starting, late, newer", ends(&newer, StartFailed, Ground::Silence), StartFailed, NO, Some("found")),
        ("starting, stopped", by_proof(Starting, Some((Deleted, true)), WorkerExited), Deleted, YES, Some("found")),
    ]);
}

#[test]
fn stop() {
    for (stopper, reason) in [
        (Stopper::Plan, Deleted),
        (Stopper::ShutDown, NodeShutdown),
        (Stopper::Signal, NodeShutdown),
        (Stopper::Restart, WorkerExited),
        (Stopper::Withdrawal, StartFailed),
        (Stopper::PodDeletion(None), Deleted),
        (Stopper::PodDeletion(Some(Evicted)), Evicted),
    ] {
        assert_eq!(stop::reason(stopper), reason, "{stopper:?}");
    }
    let killed = || Failure::detailed(WorkerExited, "killed by SIGTERM (signal 15)");
    let own = || Failure::detailed(AgentError, "exit code 1").with_message("my own words");
    check(vec![
        (
            "killed in a stop",
            stop::explained(killed(), Some(Evicted)),
            Evicted,
            YES,
            Some("killed by SIGTERM (signal 15)"),
        ),
        ("killed", stop::explained(killed(), None), WorkerExited, YES, Some("killed by SIGTERM (signal 15)")),
        ("failed in a stop", stop::explained(own(), Some(Evicted)), AgentError, YES, Some("exit code 1")),
    ]);
    assert!(stop::may_explain(&killed()) && !stop::may_explain(&own()));
    assert_eq!(stop::explained(killed(), Some(Evicted)).message, Evicted.client_message());
    assert_eq!(stop::explained(own(), Some(Evicted)), own(), "its own word stands");
}

#[test]
fn rule() {
    use rule::Refusal;
    check(vec![
        ("cancel", rule::cancelled(), Cancelled, NO, None),
        ("a deleted AgentTurn", rule::object_deleted(), Cancelled, NO, Some("its AgentTurn was deleted")),
        ("an erased conversation", rule::erased(), Cancelled, NO, None),
        ("a forgotten turn", rule::forgotten(), Internal, YES, None),
        ("deadline", rule::too_late(), DeadlineExceeded, NO, None),
        ("guardrail", rule::rejected("Not here.", "rule 1"), GuardrailRejected, NO, Some("rule 1")),
        ("an unusable spec", rule::unusable("no input"), Internal, YES, None),
        ("shed", rule::shed(), QuotaExceeded, YES, None),
        ("no agent", rule::agent_gone(), AgentNotFound, NO, None),
        (
            "unreadable",
            rule::unreadable("no object", "a reply"),
            Internal,
            YES,
            Some("no object; the outcome was a reply"),
        ),
        ("unstorable", rule::unstorable("reply"), Internal, YES, Some("the database refused the content of the reply")),
    ]);
    assert_eq!(rule::rejected("Not here.", "rule 1").message, "Not here.");
    for (refusal, reason) in [
        (Refusal::NoAgent, AgentNotFound),
        (Refusal::Full, QuotaExceeded),
        (Refusal::Taken, Conflict),
        (Refusal::Unusable, Internal),
    ] {
        assert_eq!(rule::refused(refusal), reason, "{refusal:?}");
    }
}
