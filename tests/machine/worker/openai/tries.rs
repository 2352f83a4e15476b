//! What the worker does about trouble that may pass, about trouble that does not, and on which way it goes to the server.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_connection_that_the_server_closed_as_idle_costs_no_turn() {
    // The second request of a connection is read and not answered, as by a server whose patience ends in that moment.
    let taken = std::sync::Mutex::new(std::collections::HashSet::new());
    let server = ModelServer::start(move |request| match taken.lock().unwrap().insert(request.connection) {
        true => said("ok"),
        false => answer("", Then::Eof),
    })
    .await;
    let bench = bench(&server, &[]).await;
    for message in ["first", "second"] {
        assert_eq!(bench.turn(message).await.1, Outcome::Reply, "{message}");
    }
    let connections: Vec<usize> = server.asked("second").iter().map(|request| request.connection).collect();
    assert_eq!(connections, [0, 1], "the old connection, then a new one");
}

#[tokio::test]
async fn an_overloaded_server_is_asked_once_more_after_the_pause_that_it_wants() {
    let tries = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    let server = ModelServer::start(move |request| {
        let mut tries = tries.lock().unwrap();
        let count = tries.entry(request.message().to_owned()).or_default();
        *count += 1;
        let (code, again) = request.message().split_once(' ').unwrap();
        match (*count, again) {
            (1, _) | (_, "always") => status(&format!("{code} Busy"), "Retry-After: 2\r\n", "busy"),
            _ => said("ok"),
        }
    })
    .await;
    let bench = bench(&server, &["--turns-per-worker", "8"]).await;
    for code in ["429", "503"] {
        let message = format!("{code} once");
        assert_eq!(bench.turn(&message).await.1, Outcome::Reply);
        let asked = server.asked(&message);
        let pause = asked[1].at - asked[0].at;
        assert!(pause >= Duration::from_secs(2), "{code}: {pause:?}");
        let message = format!("{code} always");
        let (reason, detail) = failed(&bench, &message).await;
        assert_eq!((reason.as_str(), server.asked(&message).len()), ("ModelUnavailable", 2), "one new try");
        assert!(detail.contains(&format!("answered {code}")) && detail.contains("busy"), "{detail}");
    }
    let bench = super::bench(&server, &["--retries", "0"]).await;
    assert_eq!(failed(&bench, "503 again").await.0, "ModelUnavailable");
    assert_eq!(server.asked("503 again").len(), 1, "no new try where none is wanted");
}

#[tokio::test]
async fn a_pause_that_the_turn_does_not_have_is_told_at_once() {
    let server = ModelServer::start(|_| status("429 Too Many Requests", "Retry-After: 300\r\n", "slow down")).await;
    let bench = bench(&server, &[]).await;
    let turn = bench.gateway.push_with("m", "c", |turn| turn.seconds_left = Some(40));
    let failure = failure(bench.over(turn).await.1);
    let detail = failure.detail.unwrap();
    assert_eq!((failure.reason.as_str(), server.requests().len()), ("ModelUnavailable", 1));
    assert!(detail.contains("a pause of 300 s") && detail.contains("slow down"), "{detail}");
}

#[tokio::test]
async fn nothing_is_asked_twice_once_an_answer_has_begun_or_where_it_cannot_help() {
    let server = ModelServer::start(|request| match request.message() {
        "half" => {
            answer("HTTP/1.1 200 OK\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n", Then::Eof)
        }
        "error first" => {
            answer("HTTP/1.1 200 OK\r\n\r\ndata: {\"error\":{\"code\":503,\"message\":\"busy\"}}\n\n", Then::Eof)
        }
        code => status(&format!("{code} No"), "Retry-After: 1\r\n", r#"{"error":{"message":"the server's words"}}"#),
    })
    .await;
    let bench = bench(&server, &[]).await;
    for (message, reason) in [("half", "AgentError"), ("error first", "ModelUnavailable")] {
        assert_eq!(failed(&bench, message).await.0, reason, "{message}");
        assert_eq!(server.asked(message).len(), 1, "{message}");
    }
    for code in ["400", "401", "402", "403", "404", "405", "410", "422", "501"] {
        let (reason, detail) = failed(&bench, code).await;
        assert_eq!((reason.as_str(), server.asked(code).len()), ("ModelRejected", 1), "{code}: {detail}");
        assert!(detail.contains(code) && detail.contains("the server's words"), "{detail}");
    }
}

#[tokio::test]
async fn a_redirect_is_named_and_not_followed() {
    let server = ModelServer::start(|request| {
        let code = request.message();
        status(&format!("{code} Elsewhere"), "Location: /v2/chat/completions?key=1\r\n", "")
    })
    .await;
    let bench = bench(&server, &[]).await;
    for code in ["301", "302", "303", "307", "308"] {
        let (reason, detail) = failed(&bench, code).await;
        assert_eq!(reason, "ModelRejected", "{detail}");
        assert!(detail.contains(code) && detail.contains("/v2/chat/completions"), "{detail}");
    }
    assert_eq!(server.requests().len(), 5, "each was asked once, and no other path");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_as_that() {
    let nobody = free_address();
    for base in [format!("http://me:password@{nobody}/v1?key=secret"), "http://no-such-name.invalid/v1".into()] {
        let bench = Bench::start(&["openai", "--base-url", &base, "--model", "m", "--wait-ready", "0"]).await;
        let (reason, detail) = failed(&bench, "hello").await;
        assert_eq!(reason, "ModelUnavailable", "{detail}");
        let host = if base.contains("invalid") { "no-such-name.invalid".into() } else { nobody.to_string() };
        assert!(detail.contains(&format!("http://{host}/v1")) && detail.contains("cannot be reached"), "{detail}");
        assert!(!detail.contains("password") && !detail.contains("secret"), "{detail}");
    }
}

/// A worker whose environment names a proxy.
async fn behind(proxy: &str, base: &str) -> Bench {
    let proxies = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| format!("{name}={proxy}"));
    let mut command = vec!["env", "-u", "NO_PROXY", "-u", "no_proxy"];
    command.extend(proxies.iter().map(String::as_str));
    command.extend([LASTWORD, "worker", "openai", "--base-url", base, "--model", "m", "--wait-ready", "0"]);
    Bench::launch(&command, |_| {}).await
}

#[tokio::test]
async fn a_proxy_is_for_what_is_far_away() {
    let server = ModelServer::start(|_| said("directly")).await;
    let proxy = ModelServer::start(|_| said("by the proxy")).await;
    let proxy_url = format!("http://127.0.0.1:{}", proxy.port);
    for host in ["127.0.0.1", "localhost"] {
        let bench = behind(&proxy_url, &format!("http://{host}:{}/v1", server.port)).await;
        assert_eq!(text(&bench.turn("hello").await.0), "directly", "{host}");
    }
    for host in ["model.example.invalid", "198.51.100.7"] {
        let bench = behind(&proxy_url, &format!("http://{host}/v1")).await;
        assert_eq!(text(&bench.turn("hello").await.0), "by the proxy", "{host}");
        let request = proxy.requests().pop().unwrap();
        assert!(request.head.starts_with(&format!("POST http://{host}/v1/chat/completions ")), "{}", request.head);
    }
    // Of the cluster by its name or its address: nobody is there, and the proxy is not asked either.
    for host in ["vllm", "vllm.models.svc", "vllm.models.svc.cluster.local"] {
        let bench = behind(&proxy_url, &format!("http://{host}:1/v1")).await;
        assert_eq!(failed(&bench, host).await.0, "ModelUnavailable", "{host}");
    }
    assert_eq!(proxy.requests().len(), 2);
}

#[tokio::test]
async fn headers_and_key_come_from_variables() {
    let server = ModelServer::start(|_| said("ok")).await;
    let command =
        ["env", "KEY=sk-1", "TEAM=red", "OTHER=Basic abc", LASTWORD, "worker", "openai", "--base-url", &server.base];
    let flags = ["--model", "m", "--wait-ready", "0", "--api-key-env", "KEY", "--header-env", "X-Team=TEAM"];
    let bench = Bench::launch(&[&command[..], &flags].concat(), |_| {}).await;
    assert_eq!(bench.turn("one").await.1, Outcome::Reply);
    let flags = [&flags[..], &["--header-env", "Authorization=OTHER"]].concat();
    let bench = Bench::launch(&[&command[..], &flags].concat(), |_| {}).await;
    assert_eq!(bench.turn("two").await.1, Outcome::Reply);
    let requests = server.requests();
    let told = |n: usize| (requests[n].header("authorization"), requests[n].header("x-team"));
    assert_eq!(told(0), (Some("Bearer sk-1"), Some("red")));
    assert_eq!(told(1), (Some("Basic abc"), Some("red")), "a header of one's own replaces ours");
}

#[tokio::test]
async fn a_worker_that_cannot_ask_as_it_should_does_not_start() {
    for (flags, says) in [
        (["--api-key-env", "ABSENT"], "ABSENT"),
        (["--header-env", "X-Team"], "NAME=VARIABLE"),
        (["--header-env", "X Team=PATH"], "NAME=VARIABLE"),
        (["--ca-env", "PATH"], "PATH: holds no certificate"),
    ] {
        let mut command = Command::new(LASTWORD);
        command.args(["worker", "openai", "--base-url", "https://127.0.0.1:1/v1", "--model", "m"]).args(flags);
        let ended = within("the worker ends", command.kill_on_drop(true).output()).await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}
