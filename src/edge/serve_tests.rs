use std::path::Path;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, Version};
use axum::routing::get;
use tokio::sync::Notify;

use super::*;
use crate::tls;

const LIMITS: PortLimits = PortLimits {
    connections: 100,
    header_timeout: Duration::from_secs(10),
    header_bytes: 16 * 1024,
    shutdown_grace: Duration::from_secs(5),
    http2: true,
    reader_patience: None,
    know_users: false,
};

/// One router on two ports, the second with TLS: their base URLs, and a client.
async fn ports(router: Router, shutdown: &CancellationToken) -> ([String; 2], reqwest::Client) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    let pair = tls::server(&file("first.crt"), &file("first.key"), tls::HTTP2).expect("a pair");
    let mut urls = [String::new(), String::new()];
    for (url, (scheme, tls)) in urls.iter_mut().zip([("http", None), ("https", Some(pair))]) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        *url = format!("{scheme}://localhost:{}", listener.local_addr().expect("bound").port());
        let (router, shutdown) = (router.clone(), shutdown.clone());
        tokio::spawn(async move { serve(listener, router, &LIMITS, tls, shutdown).await });
    }
    let authorities = tls::Authorities::read(&file("first-ca.crt")).expect("an authority");
    (urls, tls::http_trusting(&authorities).no_proxy().build().expect("a client"))
}

/// A client takes a clean end of a stream for success, so a stream without its terminal must not have one.
#[tokio::test]
async fn a_stream_that_breaks_off_never_ends_cleanly() {
    let breaks = Arc::new(Notify::new());
    let here = breaks.clone();
    let broken = || async move {
        Body::from_stream(async_stream::stream! {
            yield Ok(Bytes::from("the beginning"));
            here.notified().await;
            yield Err(io::Error::other("no terminal"));
        })
    };
    let whole = || async { Body::from_stream(futures::stream::iter([Ok::<_, io::Error>(Bytes::from("whole"))])) };
    let router = Router::new().route("/broken", get(broken)).route("/whole", get(whole));
    let (urls, client) = ports(router, &CancellationToken::new()).await;
    for url in urls {
        let whole = client.get(format!("{url}/whole")).send().await.expect("an answer").text().await;
        assert_eq!(whole.expect("all of it"), "whole", "{url}");
        let mut broken = client.get(format!("{url}/broken")).send().await.expect("an answer");
        assert_eq!(broken.chunk().await.expect("what came"), Some(Bytes::from("the beginning")), "{url}");
        breaks.notify_one();
        broken.chunk().await.expect_err("no clean end");
    }
}

/// Also of a route whose author did not think of it.
#[tokio::test]
async fn no_response_of_unknown_length_goes_out_by_http_1_0() {
    let stream = || async { Body::from_stream(futures::stream::iter([Ok::<_, io::Error>(Bytes::from("whole"))])) };
    let router = Router::new().route("/stream", get(stream)).route("/known", get(|| async { "whole" }));
    let (urls, client) = ports(router, &CancellationToken::new()).await;
    for url in urls {
        let ask = async |path: &str, version| {
            let answer = client.get(format!("{url}{path}")).version(version).send().await.expect("an answer");
            (answer.status(), answer.text().await.expect("all of it"))
        };
        assert_eq!(ask("/stream", Version::HTTP_11).await, (StatusCode::OK, "whole".into()));
        assert_eq!(ask("/known", Version::HTTP_10).await, (StatusCode::OK, "whole".into()));
        let (status, said) = ask("/stream", Version::HTTP_10).await;
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
        assert!(said.contains("proxy_http_version 1.1"), "{said}");
    }
}

/// At shutdown, a request in progress is answered, and then the connection is closed.
#[tokio::test]
async fn a_request_that_is_open_at_shutdown_is_answered() {
    for port in 0..2 {
        let shutdown = CancellationToken::new();
        let stopping = shutdown.clone();
        let slow = || async move {
            stopping.cancel();
            tokio::task::yield_now().await;
            "done"
        };
        let (urls, client) = ports(Router::new().route("/", get(slow)), &shutdown).await;
        let answer = client.get(&urls[port]).send().await.expect("an answer");
        assert_eq!(answer.text().await.expect("all of it"), "done");
    }
}
