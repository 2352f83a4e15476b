//! Web pages, and others on the same machine: what a browser sends for a page of another origin is refused, and without
//! keys only the user who runs the gateway is served.

use std::process::Stdio;

use lastword::gateway::{AuthMode, GatewayError, Listeners, ServedHost};
use lastword::store::keys::KeyRole;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;

use super::raw;
use crate::support::client::answer;
use crate::support::dev::{Dev, agent};
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key};
use crate::support::wait::within;
use crate::support::{Db, skipped};

crate::newest! {
    a_web_page_of_another_origin_gets_nothing,
    a_gateway_answers_to_the_hosts_that_it_was_told,
    every_post_is_json,
    answers_tell_browsers_not_to_guess,
    another_user_of_this_machine_needs_a_key,
}

/// A page in the browser of somebody who uses Lastword opens no session there, so it eats no delivery, and sends nothing.
async fn a_web_page_of_another_origin_gets_nothing(db: Db) {
    for auth in [AuthMode::None, AuthMode::Keys] {
        let gateway = Gateway::with(db.options(), |config| config.auth = auth).await;
        let key = api_key(&db.store, ORGANIZATION, "local", KeyRole::User).await.1;
        let client = gateway.client_with(&key);
        let name = format!("c-{auth:?}");
        let turn = client.submit(&name, "m", "hello").await;
        client.cancel(turn.turn_id).await;
        let events = format!("/v1/conversations/{name}/events");
        let record = format!("/v1/turns/{}", turn.turn_id);
        let turns = format!("/v1/conversations/{name}/turns");
        let body = json!({"agent": AGENT, "message": "of a page"});
        for (header, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "http://localhost:1"),
            ("origin", "null"),
            ("host", "evil.example"),
        ] {
            for (method, path) in [(Method::GET, &events), (Method::GET, &record), (Method::POST, &turns)] {
                let mut request = client.request(method.clone(), path).header(header, value);
                if method == Method::POST {
                    request = request.json(&body);
                }
                let (status, problem) = answer(within(path, request.send()).await.expect("an answer")).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{auth:?}: {method} {path} with {header} {value}: {problem}");
            }
        }
        let preflight = client.request(Method::OPTIONS, &turns).header("origin", "https://evil.example").send();
        let granted = within("a preflight", preflight).await.expect("an answer");
        assert!(granted.headers().get("access-control-allow-origin").is_none() && !granted.status().is_success());
        assert_eq!(db.count("turn").await, db.count("conversation").await, "nothing was sent");
        let left = format!("delivery d JOIN turn t ON t.id = d.turn_id WHERE t.id = '{}'", turn.turn_id);
        assert_eq!(db.count(&left).await, 1, "nothing was shown");
        // A page that we have served ourselves is of our origin, and somebody may open an address by hand.
        for (header, value) in
            [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none"), ("origin", &gateway.clients)]
        {
            let request = client.request(Method::GET, &turns).header(header, value).send();
            assert_eq!(within(&turns, request).await.expect("an answer").status(), StatusCode::OK, "{header} {value}");
        }
        client.session(&name, None).await.until("complete").await;
    }
}

/// Loopback always, with keys addresses, and what the flag lists; nothing else, and not one of two.
async fn a_gateway_answers_to_the_hosts_that_it_was_told(db: Db) {
    let hosts: Vec<ServedHost> = ["chat.example.com", "*.apps.example.com"].map(|h| h.parse().expect("a host")).into();
    let gateway = Gateway::with(db.options(), |config| (config.auth, config.hosts) = (AuthMode::Keys, hosts)).await;
    let key = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    for (hosts, wanted) in [
        ("host: chat.example.com\r\n", 200),
        ("host: chat.example.com:8443\r\n", 200),
        ("host: a.apps.example.com\r\n", 200),
        ("host: 10.1.2.3\r\n", 200),
        ("host: localhost:1\r\n", 200),
        ("host: example.com\r\n", 403),
        ("host: chat.example.com.evil.example\r\n", 403),
        ("host: evil@chat.example.com\r\n", 400),
        ("host: chat.example.com\r\nhost: evil.example\r\n", 400),
        ("host: evil.example\r\nhost: chat.example.com\r\n", 400),
        ("", 400),
    ] {
        let request = format!(
            "GET /v1/conversations/c/turns HTTP/1.1\r\n{hosts}authorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(&gateway.clients, request.as_bytes()).await;
        // Nobody has made the conversation: 404 is an answer to a caller.
        let wanted = if wanted == 200 { 404 } else { wanted };
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{hosts:?}: {answer}");
        assert!(wanted != 403 || answer.contains("--hosts"), "the flag is named: {answer}");
    }
    // Probes and pods call the other ports by any address.
    let elsewhere = "GET /worker/v1/turns HTTP/1.1\r\nhost: 10.1.2.3\r\nconnection: close\r\n\r\n";
    assert!(raw(&gateway.workers, elsewhere.as_bytes()).await.starts_with("HTTP/1.1 401"));

    let bind = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let any = lastword::gateway::GatewayConfig { hosts: vec![ServedHost::Any], ..Default::default() };
    let listeners = Listeners { clients: bind().await, workers: bind().await };
    let served = lastword::gateway::run(any, db.another_store(), listeners, Default::default());
    assert!(matches!(within("the refusal", served).await, Err(GatewayError::AnyHost)), "any page, without a key");
}

/// A form of a web page can send text, and a body of no kind; neither is taken, also where no body is read.
async fn every_post_is_json(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let turn = client.submit("c", "m", "hello").await.turn_id;
    let body = json!({"agent": AGENT, "message": "hello"}).to_string();
    for path in ["/v1/conversations/c/turns".to_owned(), format!("/v1/turns/{turn}/cancel")] {
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "x/json"]
        {
            let request = client.request(Method::POST, &path).header("content-type", kind).body(body.clone());
            let (status, problem) = answer(within(&path, request.send()).await.expect("an answer")).await;
            assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path} with {kind:?}: {problem}");
        }
        let bare = client.request(Method::POST, &path).send();
        let (status, _) = answer(within(&path, bare).await.expect("an answer")).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path}, of no kind");
    }
    assert_eq!((db.count("turn").await, db.outcome(turn).await), (1, None));
    let kind = "application/json; charset=utf-8";
    let cancel = client.request(Method::POST, &format!("/v1/turns/{turn}/cancel")).header("content-type", kind).send();
    assert_eq!(within("a cancel", cancel).await.expect("an answer").status(), StatusCode::OK);
}

async fn answers_tell_browsers_not_to_guess(db: Db) {
    let gateway = Gateway::start(&db).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    for path in [
        format!("{}/v1/turns/{turn}", gateway.clients),
        format!("{}/v1/turns/{turn}/events", gateway.clients),
        format!("{}/openapi.json", gateway.clients),
        format!("{}/nowhere", gateway.clients),
        format!("{}/nowhere", gateway.workers),
    ] {
        let answer = within(&path, gateway.client().http.get(&path).send()).await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert!(header("content-security-policy").contains("default-src 'none'"), "{path}");
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
    }
}

/// `curl` as this user or another, without anything to type beside the URL, or with a key.
async fn curl(url: &str, user: Option<u32>, key: Option<&str>) -> (u16, Value) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--noproxy", "*", "--write-out", "\n%{http_code}", url]).current_dir("/");
    if let Some(key) = key {
        curl.args(["--header", &format!("Authorization: Bearer {key}")]);
    }
    if let Some(user) = user {
        curl.uid(user).gid(user);
    }
    let output = within("curl", curl.stdin(Stdio::null()).output()).await.expect("curl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.parse().expect("a status"), serde_json::from_str(body).unwrap_or_default())
}

/// Who can run programs as another user here, and has `curl`.
fn another_user() -> Option<u32> {
    let runs = std::process::Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if !rustix::process::geteuid().is_root() || !runs.is_ok_and(|status| status.success()) {
        skipped("a request of another user needs root, and curl");
        return None;
    }
    Some(65_534)
}

/// Without keys, loopback is shared by all users of a machine, and the gateway's user is an operator.
async fn another_user_of_this_machine_needs_a_key(db: Db) {
    let Some(nobody) = another_user() else { return };
    let gateway = Gateway::start(&db).await;
    let url = format!("{}/v1/turns", gateway.clients);
    assert_eq!(curl(&url, None, None).await.0, 200, "plain curl of the same user works on");
    let (status, problem) = curl(&url, Some(nobody), None).await;
    assert_eq!(status, 401, "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("lastword keys create")), "{problem}");
    assert_eq!(curl(&url, Some(nobody), Some("lwk_x")).await.0, 401);
    let key = api_key(&db.store, ORGANIZATION, "eve", KeyRole::User).await.1;
    assert_eq!(curl(&url, Some(nobody), Some(&key)).await.0, 403, "who has a key is that key's user, and no operator");
    let own = format!("{}/v1/conversations/mine/turns", gateway.clients);
    assert_eq!(curl(&own, Some(nobody), Some(&key)).await.0, 404, "nothing there yet");
    assert_eq!(curl(&own, Some(nobody), None).await.0, 401);
}

/// The same on `lastword dev` as people start it, by either name of loopback.
#[test]
fn dev_serves_the_user_who_runs_it() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let Some(nobody) = another_user() else { return };
        let dev = Dev::start(&agent("cat", json!({}), &["cat"])).await;
        let port = dev.url().rsplit_once(':').expect("a port").1;
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{port}/v1/turns");
            assert_eq!(curl(&url, None, None).await.0, 200, "{host}");
            assert_eq!(curl(&url, Some(nobody), None).await.0, 401, "{host}");
        }
    });
}
