//! A browser's login: a cookie in place of the key, for the gateway's own page alone.

use lastword::gateway::AuthMode;
use lastword::store::keys::{self, KeyRole};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::Db;
use crate::support::client::{Client, answer};
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::wait::{eventually, within};

crate::newest! {
    a_login_serves_the_page_until_it_ends,
    the_page_is_served_with_a_strict_policy,
}

/// Calls with these headers.
async fn call(client: &Client, method: Method, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String, Value) {
    let mut request = client.request(method.clone(), path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if method == Method::POST {
        request = request.json(&json!({}));
    }
    let response = within(path, request.send()).await.expect("an answer");
    let cookie = response.headers().get("set-cookie").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (status, body) = answer(response).await;
    (status, cookie, body)
}

async fn a_login_serves_the_page_until_it_ends(db: Db) {
    let origins = vec!["https://app.example.com".parse().expect("an origin")];
    let gateway = Gateway::with(db.options(), |c| (c.auth, c.origins) = (AuthMode::Keys, origins)).await;
    let (id, key) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let (with_key, browser) = (gateway.client_with(&key), gateway.client());
    let own = gateway.clients.clone();

    let (status, cookie, who) = call(&with_key, Method::POST, "/session", &[("origin", &own)]).await;
    assert_eq!(status, StatusCode::CREATED, "{who}");
    assert_eq!(who, json!({"user": "ada", "organization": ORGANIZATION, "operator": false, "login": true}));
    let (pair, attributes) = cookie.split_once("; ").expect("attributes");
    assert!(pair.starts_with("lastword=lws_"), "{pair}");
    assert_eq!(attributes.replace(char::is_numeric, ""), "Path=/; Max-Age=; HttpOnly; SameSite=Strict");
    let secret = pair.split_once("lws_").expect("a secret").1;
    assert_eq!(db.count(&format!("login WHERE encode(hash, 'hex') = '{}'", &secret[..64])).await, 0, "only hashed");
    let tls = [("origin", "https://127.0.0.1"), ("host", "127.0.0.1")];
    let (_, secure, _) = call(&with_key, Method::POST, "/session", &tls).await;
    assert!(secure.starts_with("__Host-lastword=lws_") && secure.ends_with("; Secure"), "{secure}");

    // The cookie reads without a word, and writes where the browser says that our own page asks.
    let login = ("cookie", pair);
    assert_eq!(call(&browser, Method::GET, "/session", &[login]).await.0, StatusCode::OK);
    assert_eq!(call(&browser, Method::GET, "/v1/conversations", &[login]).await.0, StatusCode::OK);
    assert_eq!(
        call(&browser, Method::POST, "/v1/streams/tickets", &[login, ("origin", &own)]).await.0,
        StatusCode::CREATED
    );
    assert_eq!(call(&browser, Method::POST, "/v1/streams/tickets", &[login]).await.0, StatusCode::FORBIDDEN);
    let allowed = ("origin", "https://app.example.com");
    assert_eq!(call(&browser, Method::GET, "/v1/conversations", &[login, allowed]).await.0, StatusCode::FORBIDDEN);
    let evil = ("origin", "https://evil.example");
    assert_eq!(call(&browser, Method::GET, "/v1/conversations", &[login, evil]).await.0, StatusCode::FORBIDDEN);
    let made_up = format!("lastword=lws_{}", "0".repeat(72));
    assert_eq!(call(&browser, Method::GET, "/session", &[("cookie", &made_up)]).await.0, StatusCode::UNAUTHORIZED);
    // It makes no login by itself: a key is to be shown for that… or a login that is good.
    assert_eq!(call(&browser, Method::POST, "/session", &[("origin", &own)]).await.0, StatusCode::UNAUTHORIZED);

    let (status, forgotten, _) = call(&browser, Method::DELETE, "/session", &[login, ("origin", &own)]).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(forgotten.starts_with("lastword=; ") && forgotten.contains("Max-Age=0"), "{forgotten}");
    assert_eq!(call(&browser, Method::GET, "/session", &[login]).await.0, StatusCode::UNAUTHORIZED, "logged out");
    let (_, cookie, _) = call(&with_key, Method::POST, "/session", &[("origin", &own)]).await;
    let login = ("cookie", cookie.split_once("; ").expect("attributes").0);
    keys::revoke(db.store.pool(), id).await.expect("revokes");
    eventually("the login ends with its key", async || {
        call(&browser, Method::GET, "/session", &[login]).await.0 == StatusCode::UNAUTHORIZED
    })
    .await;
}

async fn the_page_is_served_with_a_strict_policy(db: Db) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let client = gateway.client();
    let get = async |path: &str, tag: &str| {
        let request = client.request(Method::GET, path).header("if-none-match", tag);
        within(path, request.send()).await.expect("an answer")
    };
    let page = get("/", "").await;
    assert_eq!(page.status(), StatusCode::OK);
    let header = |name: &str| page.headers()[name].to_str().expect("text").to_owned();
    let policy = header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types dompurify"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    let tag = header("etag");
    let text = page.text().await.expect("text");
    assert_eq!(get("/", &tag).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(get("/", "\"other\"").await.status(), StatusCode::OK);
    let paths: Vec<&str> = text.split('"').filter(|part| part.starts_with("/page/")).collect();
    assert!(paths.len() >= 3, "{text}");
    for path in paths {
        let file = get(path, "").await;
        assert_eq!(file.status(), StatusCode::OK, "{path}");
        assert!(file.headers()["cache-control"].to_str().expect("text").contains("immutable"), "{path}");
        let (digest, name) = path["/page/".len()..].split_once('/').expect("a digest");
        let other = get(&format!("/page/{}/{name}", digest.replace(char::is_alphanumeric, "0")), "").await;
        assert_eq!(other.status(), StatusCode::NOT_FOUND, "of another version");
    }
}
