//! What guardrails answer: expressions in the processes that evaluate them, webhooks on a real HTTP server on loopback.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Redirect;
use axum::routing::post;
use serde_json::{Value, json};

use lastword::crd::SecretKeyRef;
use lastword::egress::{Egress, Outbound, Reach};
use lastword::guard::{
    Evaluators, GuardVerdict, GuardrailProblem, Guards, Input, MAX_MESSAGE_BYTES, NOT_CHECKED, Services,
};
use lastword::secrets::{NoSecrets, SecretError, Secrets};
use lastword::turn::reason::Reason;

use crate::support::{LASTWORD, crypto};

/// Receivers here are on loopback, which is refused otherwise.
fn services() -> Services {
    services_within(Egress::default().with_loopback())
}

fn services_within(egress: Egress) -> Services {
    services_with(egress, Arc::new(NoSecrets))
}

fn services_with(egress: Egress, secrets: Arc<dyn Secrets>) -> Services {
    crypto();
    Services::new(Outbound::new(egress, Reach::Cluster).unwrap(), secrets, Evaluators::new(LASTWORD))
}

fn services_by(evaluators: Evaluators) -> Services {
    let Services { outbound, secrets, .. } = services();
    Services::new(outbound, secrets, evaluators)
}

fn guards(guardrails: Value) -> Guards {
    Guards::compile(&serde_json::from_value(json!({ "input": guardrails })).unwrap()).unwrap()
}

fn input(metadata: &Value) -> Input<'_> {
    Input {
        organization: "default",
        conversation: "c",
        user: "ada",
        agent: "helper",
        platform: "api",
        message_id: "m-1",
        turn_id: "t-1",
        message: "hi",
        platform_metadata: metadata,
    }
}

async fn verdict(guardrails: Value, message: &str) -> GuardVerdict {
    let metadata = json!({"channel": "C1", "tags": ["a", "b"], "n": 3});
    guards(guardrails).check(&services(), Input { message, ..input(&metadata) }).await
}

/// Writes a program. No test of this process forks while it is open for writing, or the kernel would refuse to run it.
fn executable(path: &std::path::Path, script: &str) {
    let made = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .arg(script)
        .status();
    assert!(made.unwrap().success());
}

fn rejection(verdict: GuardVerdict) -> (String, String) {
    match verdict {
        GuardVerdict::Reject { message, detail } => (message, detail),
        other => panic!("{other:?}"),
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn webhook(url: &str, policy: &str) -> Value {
    json!([{"webhook": {"url": url, "timeoutSeconds": 1}, "failurePolicy": policy}])
}

/// Broken under both policies: Fail rejects with the fixed sentence and the given cause, Ignore allows.
async fn assert_broken(url: &str, cause: &str) {
    let (message, detail) = rejection(verdict(webhook(url, "Fail"), "hi").await);
    assert_eq!(message, NOT_CHECKED);
    assert!(detail.contains(cause), "{detail}");
    assert!(!detail.contains("127.0.0.1"), "the URL may be a secret: {detail}");
    assert_eq!(verdict(webhook(url, "Ignore"), "hi").await, GuardVerdict::Allow);
}

#[tokio::test]
async fn cel_sees_its_variables() {
    for allows in [
        "message == 'hi' && size == 2 && size(message) == 2",
        "user == 'ada' && conversation == 'c' && platform == 'api'",
        "metadata.channel == 'C1' && metadata.tags.exists(t, t == 'b') && metadata.n == 3",
        "!has(metadata.absent)",
        "!message.matches('(?i)password')",
        "[1, 2].map(x, x * 2)[1] == 4",
        // As deep as is allowed, in the process that evaluates.
        &format!("{} == 60", vec!["1"; 60].join(" + ")),
    ] {
        assert_eq!(verdict(json!([{ "cel": allows }]), "hi").await, GuardVerdict::Allow, "{allows}");
    }
}

#[tokio::test]
async fn the_first_rejection_wins() {
    let guardrails = json!([
        {"cel": "size < 100"},
        {"cel": "!message.contains('x')", "message": "No x, please."},
        {"cel": "false", "message": "never reached"},
    ]);
    let (message, detail) = rejection(verdict(guardrails, "axb").await);
    assert_eq!(message, "No x, please.");
    assert_eq!(detail, "rejected by guardrail 1 (cel)");
    let (message, _) = rejection(verdict(json!([{"cel": "false"}]), "a").await);
    assert_eq!(message, Reason::GuardrailRejected.client_message());
}

#[tokio::test]
async fn a_broken_expression_follows_its_policy() {
    for broken in ["metadata.absent == 1", "size", "1 / (size - 2) == 1", "nosuch(message)"] {
        let (message, detail) = rejection(verdict(json!([{ "cel": broken }]), "hi").await);
        assert_eq!(message, NOT_CHECKED);
        assert!(detail.contains("guardrail 0 (cel) could not decide"), "{detail}");
        let ignored = json!([{"cel": broken, "failurePolicy": "Ignore"}, {"cel": "message == 'hi'"}]);
        assert_eq!(verdict(ignored.clone(), "hi").await, GuardVerdict::Allow);
        rejection(verdict(ignored, "ho").await);
    }
}

/// An expression that is broken by a limit: both policies decide, and the next question is answered as if nothing had been.
async fn assert_limited(expression: &str, message: &str, limit: &str) {
    let services = services();
    let ask = async |guardrails: Value, message: &str| {
        let metadata = Value::Null;
        guards(guardrails).check(&services, Input { message, ..input(&metadata) }).await
    };
    let (told, detail) = rejection(ask(json!([{ "cel": expression }]), message).await);
    assert_eq!(told, NOT_CHECKED);
    assert!(detail.contains(limit), "{detail}");
    let ignored = json!([{"cel": expression, "failurePolicy": "Ignore"}, {"cel": "message == 'hi'"}]);
    rejection(ask(ignored, message).await);
    assert_eq!(ask(json!([{"cel": "message == 'hi'"}]), "hi").await, GuardVerdict::Allow);
}

#[tokio::test]
async fn an_endless_expression_is_broken() {
    // 400² evaluations of a regular expression take minutes.
    let list = format!("[{}]", vec!["1"; 400].join(","));
    let slow = format!("{list}.all(a, {list}.all(b, message.matches('x{{900}}')  || a == b))");
    assert_limited(&slow, &"x".repeat(899), "processor time").await;
}

#[tokio::test]
async fn an_expression_that_takes_too_much_memory_is_broken() {
    let list = format!("[{}]", vec!["1"; 100].join(","));
    assert_limited(&format!("size({list}.map(a, message + message)) == 100"), &"x".repeat(1 << 20), "memory").await;
}

/// Whatever becomes of the process that evaluates, short of a limit, is no answer of the guardrail: it is asked again.
#[tokio::test]
async fn a_question_whose_process_was_killed_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    let first = directory.path().join("first").display().to_string();
    let script = format!("#!/bin/sh\nif mkdir '{first}'; then kill -9 $$; fi\nexec '{LASTWORD}' \"$@\"\n");
    executable(&program, &script);
    let metadata = Value::Null;
    let services = services_by(Evaluators::new(&program));
    let ignored = guards(json!([{"cel": "message != 'hi'", "failurePolicy": "Ignore"}]));
    rejection(ignored.check(&services, input(&metadata)).await);
    assert!(directory.path().join("first").exists(), "one was killed");
}

#[tokio::test]
async fn a_question_that_nobody_can_evaluate_is_not_the_policys_to_decide() {
    let evaluators = Evaluators::new("/nonexistent").with_patience(Duration::from_millis(300));
    let services = services_by(evaluators);
    for policy in ["Ignore", "Fail"] {
        let guards = guards(json!([{"cel": "true", "failurePolicy": policy}]));
        let verdict = guards.check(&services, input(&Value::Null)).await;
        let GuardVerdict::NotAsked { detail } = verdict else { panic!("{policy}: {verdict:?}") };
        assert!(detail.contains("could be started"), "{detail}");
    }
}

/// That the place where Secrets are is away is waited for; that a Secret may not be read is the installation's decision.
#[tokio::test]
async fn a_secret_that_cannot_be_read_now_is_waited_for() {
    #[derive(Debug)]
    struct Away(Mutex<u32>, bool);
    impl Secrets for Away {
        fn get<'a>(
            &'a self,
            _: &'a str,
            secret: &'a SecretKeyRef,
        ) -> futures::future::BoxFuture<'a, Result<Option<String>, SecretError>> {
            let mut asked = self.0.lock().unwrap();
            *asked += 1;
            let error = SecretError { name: secret.name.clone(), cause: "away".into(), passing: self.1 };
            let answer = if *asked == 1 { Err(error) } else { Ok(Some("https://127.0.0.1:9/".into())) };
            Box::pin(std::future::ready(answer))
        }
    }
    for (passing, cause) in [(true, "--egress-allow"), (false, "cannot read Secret s: away")] {
        let services = services_with(Egress::default(), Arc::new(Away(Mutex::default(), passing)));
        let guards = guards(json!([{"webhook": {"urlSecretRef": {"name": "s", "key": "k"}}}]));
        let (_, detail) = rejection(guards.check(&services, input(&Value::Null)).await);
        assert!(detail.contains(cause), "{detail}");
    }
}

#[test]
fn what_can_never_work_does_not_compile() {
    let sum = vec!["1"; 1000].join("+");
    let deep = format!("{}1{} == 1", "(".repeat(500), ")".repeat(500));
    let long = format!("message == '{}'", "x".repeat(2048));
    for (source, problem) in [
        ("message ==", "cel:"),
        ("mesage == 'a'", "unknown variable mesage"),
        ("metadata.tags.all(t, t == u)", "unknown variable u"),
        (&format!("{sum} == 1"), "nested deeper"),
        (&deep, "cel:"),
        (&long, "longer than"),
        ("[1].all(a, [1].all(b, [1].all(c, a + b + c == 3)))", "loops nested deeper"),
    ] {
        let guardrails = serde_json::from_value(json!({"input": [{"cel": "true"}, {"cel": source}]})).unwrap();
        let error = Guards::compile(&guardrails).unwrap_err();
        assert_eq!(error.index, 1);
        assert!(error.to_string().contains(problem), "{source:.40}: {error}");
    }
    for (guardrail, problem) in [
        (json!({}), GuardrailProblem::Kind),
        (json!({"webhook": {"url": "ftp://x"}}), GuardrailProblem::Url),
        (json!({"webhook": {}}), GuardrailProblem::UrlSource),
    ] {
        let guardrails = serde_json::from_value(json!({ "input": [guardrail] })).unwrap();
        assert_eq!(Guards::compile(&guardrails).unwrap_err().problem, problem);
    }
}

#[tokio::test]
async fn a_message_too_large_is_rejected_only_if_there_are_guardrails() {
    let large = "x".repeat(MAX_MESSAGE_BYTES + 1);
    rejection(verdict(json!([{"cel": "true", "failurePolicy": "Ignore"}]), &large).await);
    assert_eq!(verdict(json!([{"cel": "true"}]), &large[1..]).await, GuardVerdict::Allow);
    assert_eq!(verdict(json!([]), &large).await, GuardVerdict::Allow);
}

#[tokio::test]
async fn a_webhook_is_asked_and_obeyed() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let decide = move |headers: HeaderMap, body: axum::Json<Value>| async move {
        let allow = body["message"] != "bad";
        record.lock().unwrap().push((headers["webhook-id"].to_str().unwrap().to_owned(), body.0));
        axum::Json(json!({"allow": allow, "message": "Not\nthis.", "more": 1}))
    };
    let silent = || async { axum::Json(json!({"allow": false})) };
    let address = serve(Router::new().route("/", post(decide)).route("/silent", post(silent))).await;

    let guardrails = webhook(&format!("http://{address}/"), "Fail");
    assert_eq!(verdict(guardrails.clone(), "good").await, GuardVerdict::Allow);
    let (message, detail) = rejection(verdict(guardrails, "bad").await);
    assert_eq!((message.as_str(), detail.as_str()), ("Not this.", "rejected by guardrail 0 (webhook)"));

    let mut guardrails = webhook(&format!("http://{address}/silent"), "Ignore");
    guardrails[0]["message"] = json!("Said the author.");
    assert_eq!(rejection(verdict(guardrails, "bad").await).0, "Said the author.");

    let seen = seen.lock().unwrap();
    let expected = json!({"turnId": "t-1", "messageId": "m-1", "conversation": "c", "user": "ada", "agent": "helper",
        "organization": "default", "message": "good"});
    assert_eq!(seen[0], ("t-1".to_owned(), expected));
}

#[tokio::test]
async fn a_webhook_that_does_not_decide_is_broken() {
    let elsewhere = Arc::new(Mutex::new(0));
    let count = elsewhere.clone();
    let giant = || async { format!("{{\"allow\": true, \"x\": \"{}\"}}", "x".repeat(1 << 20)) };
    let router = Router::new()
        .route("/slow", post(|| async { tokio::time::sleep(Duration::from_secs(20)).await }))
        .route("/giant", post(giant))
        .route("/garbage", post(|| async { "<html>" }))
        .route("/text", post(|| async { r#"{"allow": "true"}"# }))
        .route("/empty", post(|| async {}))
        .route("/error", post(|| async { (StatusCode::BAD_GATEWAY, r#"{"allow": true}"#) }))
        .route("/denied", post(|| async { (StatusCode::FORBIDDEN, r#"{"allow": true}"#) }))
        .route("/moved", post(|| async { Redirect::temporary("/elsewhere") }))
        .route(
            "/elsewhere",
            post(move || async move {
                *count.lock().unwrap() += 1;
                r#"{"allow": true}"#
            }),
        );
    let address = serve(router).await;
    for (path, cause) in [
        ("slow", "no answer within 1s"),
        ("giant", "larger than 65536"),
        ("garbage", "its answer is not"),
        ("text", "its answer is not"),
        ("empty", "its answer is not"),
        ("error", "it answered 502"),
        ("denied", "it answered 403"),
        ("moved", "it answered 307"),
    ] {
        assert_broken(&format!("http://{address}/{path}"), cause).await;
    }
    assert_eq!(*elsewhere.lock().unwrap(), 0, "a redirect is not followed");

    let metadata = Value::Null;
    let input = input(&metadata);
    let absent = guards(json!([{"cel": "!has(metadata.channel)"}]));
    assert_eq!(absent.check(&services(), input).await, GuardVerdict::Allow, "no metadata is empty metadata");
}

#[tokio::test]
async fn a_webhook_that_is_down_or_unknown_is_broken() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_broken(&format!("http://{address}/"), "Connection refused").await;

    let unknown = json!([{"webhook": {"urlSecretRef": {"name": "s", "key": "k"}}}]);
    let (message, detail) = rejection(verdict(unknown, "hi").await);
    assert_eq!(message, NOT_CHECKED);
    assert!(detail.contains("its Secret is missing"), "{detail}");
}

/// The URL is read from its Secret for each question, in the organization's namespace.
#[tokio::test]
async fn a_url_in_a_secret_is_read_at_use() {
    #[derive(Debug, Default)]
    struct One(Mutex<Option<String>>);
    impl Secrets for One {
        fn get<'a>(
            &'a self,
            namespace: &'a str,
            secret: &'a SecretKeyRef,
        ) -> futures::future::BoxFuture<'a, Result<Option<String>, SecretError>> {
            assert_eq!((namespace, secret.name.as_str(), secret.key.as_str()), ("default", "s", "k"));
            Box::pin(std::future::ready(Ok(self.0.lock().unwrap().clone())))
        }
    }
    let address = serve(Router::new().route("/", post(|| async { axum::Json(json!({"allow": true})) }))).await;
    let secret = Arc::new(One::default());
    let services = services_with(Egress::default().with_loopback(), secret.clone());
    let guardrails = guards(json!([{"webhook": {"urlSecretRef": {"name": "s", "key": "k"}}}]));
    let metadata = Value::Null;
    let input = input(&metadata);
    rejection(guardrails.check(&services, input).await);
    *secret.0.lock().unwrap() = Some(format!("http://{address}/\n"));
    assert_eq!(guardrails.check(&services, input).await, GuardVerdict::Allow);
    *secret.0.lock().unwrap() = Some("ftp://x".into());
    rejection(guardrails.check(&services, input).await);

    // This host is out of a guardrail's reach unless the operator allows it.
    *secret.0.lock().unwrap() = Some(format!("http://{address}/"));
    let strict = services_with(Egress::default(), secret);
    let (message, detail) = rejection(guardrails.check(&strict, input).await);
    assert_eq!(message, NOT_CHECKED);
    assert!(detail.contains("--egress-allow") && !detail.contains("127.0.0.1"), "{detail}");
}
