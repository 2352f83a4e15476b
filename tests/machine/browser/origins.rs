//! Pages of other origins (CORS): those that a flag allows are answered, on the API alone, and are told so by preflights.

use lastword::gateway::AuthMode;
use lastword::store::keys::KeyRole;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::Db;
use crate::support::client::Client;
use crate::support::gateway::{AGENT, Gateway, ORGANIZATION, api_key};
use crate::support::wait::within;

crate::newest! {
    a_page_of_an_allowed_origin_calls_the_api,
    without_an_allowed_origin_nobody_is_told_anything,
}

const ALLOWED: &str = "https://app.example.com";

async fn asked(client: &Client, method: Method, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    let mut request = client.request(method.clone(), path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if method == Method::POST {
        request = request.json(&json!({"agent": AGENT, "message": "of a page"}));
    }
    let answer = within(path, request.send()).await.expect("an answer");
    (answer.status(), answer.headers().clone())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

async fn a_page_of_an_allowed_origin_calls_the_api(db: Db) {
    let origins = vec![ALLOWED.parse().expect("an origin")];
    let gateway = Gateway::with(db.options(), |c| (c.auth, c.origins) = (AuthMode::Keys, origins)).await;
    let client = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let stranger = gateway.client();
    let of = [("origin", ALLOWED), ("sec-fetch-site", "cross-site")];
    let turns = "/v1/conversations/c/turns";

    // A preflight shows no key, and is answered all the same; a browser keeps the answer.
    for (method, path) in [("POST", turns), ("GET", "/v1/conversations/c/events"), ("DELETE", "/v1/conversations/c")] {
        let wants = "authorization,content-type,last-event-id,idempotency-key,traceparent";
        let preflight =
            [of[0], of[1], ("access-control-request-method", method), ("access-control-request-headers", wants)];
        let (status, headers) = asked(&stranger, Method::OPTIONS, path, &preflight).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(header(&headers, "access-control-allow-origin"), ALLOWED);
        assert!(header(&headers, "access-control-allow-methods").contains(method));
        let allowed = header(&headers, "access-control-allow-headers");
        assert!(wants.split(',').all(|name| allowed.split(',').any(|a| a.trim() == name)), "{allowed}");
        assert_eq!(header(&headers, "access-control-max-age"), "3600");
        assert_eq!(headers.get("access-control-allow-credentials"), None, "no cookies");
    }
    // What it then sends is done, and answered so that the page may read it, refusals too.
    let (status, headers) = asked(&client, Method::POST, turns, &of).await;
    assert_eq!((status, header(&headers, "access-control-allow-origin")), (StatusCode::ACCEPTED, ALLOWED));
    assert!(header(&headers, "access-control-expose-headers").contains("retry-after"));
    assert!(header(&headers, "vary").contains("origin"), "{headers:?}");
    let (status, headers) = asked(&stranger, Method::GET, turns, &of).await;
    assert_eq!((status, header(&headers, "access-control-allow-origin")), (StatusCode::UNAUTHORIZED, ALLOWED));

    // Nothing but the API is for it, and nobody else is allowed by its side.
    for path in ["/", "/session", "/openapi.json"] {
        let (status, headers) = asked(&client, Method::GET, path, &of).await;
        assert_eq!((status, headers.get("access-control-allow-origin")), (StatusCode::FORBIDDEN, None), "{path}");
    }
    for origin in ["https://evil.example", "http://app.example.com", "https://app.example.com:8443", "null"] {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let (status, headers) = asked(&client, method.clone(), turns, &[("origin", origin)]).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} of {origin}");
            assert_eq!(headers.get("access-control-allow-origin"), None, "{method} of {origin}");
        }
    }
    assert_eq!(db.count("turn").await, 1);
}

async fn without_an_allowed_origin_nobody_is_told_anything(db: Db) {
    let gateway = Gateway::start(&db).await;
    let own = gateway.clients.clone();
    let (status, headers) = asked(&gateway.client(), Method::GET, "/v1/agents", &[("origin", &own)]).await;
    assert_eq!((status, headers.get("access-control-allow-origin")), (StatusCode::OK, None));
    let (status, _) = asked(&gateway.client(), Method::OPTIONS, "/v1/agents", &[]).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}
