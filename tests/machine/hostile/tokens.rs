//! Callers with tokens of a real OpenID Connect issuer: who they are, which tokens are none, what the issuer's changes and
//! absence do, and whose clock decides.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use lastword::gateway::{AuthMode, ClaimMapping, OidcConfig, TokenOrganization};
use lastword::store::keys::KeyRole;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::Db;
use crate::support::client::End;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::issuer::{AUDIENCE, TestIssuer};
use crate::support::wait::{eventually, throughout, within};

crate::newest! {
    a_token_makes_its_holder_a_user_of_the_issuers_own,
    what_the_issuer_has_not_signed_for_us_opens_nothing,
    the_issuer_may_change_its_keys_and_be_away,
    the_database_says_what_time_it_is,
    streams_end_with_their_token_on_every_replica,
}

/// A gateway that takes keys, and tokens of this issuer.
async fn gateway(db: &Db, issuer: &TestIssuer) -> Gateway {
    let oidc = OidcConfig {
        issuer: issuer.url.parse().expect("an issuer"),
        audiences: vec![AUDIENCE.into()],
        claims: ClaimMapping {
            user: "sub".parse().expect("a claim"),
            user_prefix: "oidc:".into(),
            organization: TokenOrganization::Fixed(ORGANIZATION.into()),
            operator: Some("groups=ops".parse().expect("a claim")),
        },
    };
    let gateway = Gateway::with(db.options(), |c| (c.auth, c.oidc) = (AuthMode::Keys, Some(oidc))).await;
    let token = issuer.token("ada").await;
    eventually("the issuer's keys are known", async || ask(&gateway, &token).await.0 == StatusCode::OK).await;
    gateway
}

/// What a token opens.
async fn ask(gateway: &Gateway, token: &str) -> (StatusCode, Value) {
    let turns = gateway.client_with(token).get("/v1/conversations/known/turns").await;
    match turns {
        // The conversation is not there; so the caller is somebody.
        (StatusCode::NOT_FOUND, _) => (StatusCode::OK, Value::Null),
        other => other,
    }
}

/// Each algorithm, the realm of its own, and the role by a claim.
async fn a_token_makes_its_holder_a_user_of_the_issuers_own(db: Db) {
    let Some(issuer) = TestIssuer::start().await else { return };
    let gateway = gateway(&db, &issuer).await;
    for algorithm in ["RS256", "PS256", "ES256", "ES384", "EdDSA"] {
        issuer.control(json!({"alg": algorithm})).await;
        let (status, answer) = ask(&gateway, &issuer.token("ada").await).await;
        assert_eq!(status, StatusCode::OK, "{algorithm}: {answer}");
    }
    let ada = gateway.client_with(&issuer.token("ada").await);
    let turn = ada.submit("c", "m", "hello").await;
    assert_eq!(db.text("SELECT owner FROM conversation").await.as_deref(), Some("oidc:ada"));
    // Another of the issuer's, and the user of a key who has the same name.
    let eve = gateway.client_with(&issuer.token("eve").await);
    let keyed = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    for stranger in [&eve, &keyed] {
        assert_eq!(stranger.get(&format!("/v1/turns/{}", turn.turn_id)).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(eve.get("/v1/turns").await.0, StatusCode::FORBIDDEN);
    issuer.control(json!({"groups": ["others", "ops"]})).await;
    let operator = gateway.client_with(&issuer.token("eve").await);
    assert_eq!(operator.get("/v1/turns").await.0, StatusCode::OK);
    operator.record(turn.turn_id).await;
}

/// Another audience, another issuer, and what a stranger makes of the issuer's public keys.
async fn what_the_issuer_has_not_signed_for_us_opens_nothing(db: Db) {
    let Some(issuer) = TestIssuer::start().await else { return };
    let gateway = gateway(&db, &issuer).await;
    let good = issuer.token("ada").await;
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { panic!("a JWT") };
    let encoded = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let decoded = |part: &str| -> Value {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON")
    };
    let with = |mut value: Value, more: Value| {
        value.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        encoded(value)
    };
    let (head, said) = (decoded(header), decoded(claims));
    let keys = issuer.public_keys().await;
    let modulus = keys["keys"][0]["n"].as_str().expect("an RSA key");
    let hs256 = |secret: &[u8]| {
        let message = format!("{}.{claims}", with(head.clone(), json!({"alg": "HS256"})));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
        mac.update(message.as_bytes());
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    };
    issuer.control(json!({"issuer": "http://127.0.0.1:1"})).await;
    let other_issuer = issuer.token("ada").await;
    issuer.control(json!({})).await;
    let known_key = with(head.clone(), json!({"kid": head["kid"]}));
    let forged = [
        ("another audience", issuer.token_for("ada", "urn:other").await),
        ("another issuer", other_issuer),
        ("no signature", format!("{}.{claims}.", with(head.clone(), json!({"alg": "none"})))),
        ("no signature, and its place", format!("{}.{claims}.{signature}", with(head.clone(), json!({"alg": "none"})))),
        ("the public key as a secret", hs256(modulus.as_bytes())),
        ("the public key's bytes as a secret", hs256(&BASE64_URL_SAFE_NO_PAD.decode(modulus).expect("base64"))),
        ("another user", format!("{header}.{}.{signature}", with(said.clone(), json!({"sub": "eve"})))),
        ("a longer life", format!("{header}.{}.{signature}", with(said.clone(), json!({"exp": 4_000_000_000_i64})))),
        ("another algorithm", format!("{}.{claims}.{signature}", with(head.clone(), json!({"alg": "ES256"})))),
        ("an extension", format!("{}.{claims}.{signature}", with(head.clone(), json!({"crit": ["x"], "x": 1})))),
        ("a logout token", format!("{}.{claims}.{signature}", with(head.clone(), json!({"typ": "logout+jwt"})))),
        ("an empty signature", format!("{known_key}.{claims}.")),
        ("a cut one", good[..good.len() - 2].to_owned()),
        ("an unknown key", format!("{}.{claims}.{signature}", with(head.clone(), json!({"kid": "made-up"})))),
        ("no token", "eyJhbGciOiJSUzI1NiJ9".to_owned()),
        ("a bad API key", "lwk_0_0".to_owned()),
    ];
    for (what, token) in forged {
        let (status, answer) = ask(&gateway, &token).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {answer}");
    }
    assert_eq!(ask(&gateway, &good).await.0, StatusCode::OK);
    // Made-up keys do not keep out whoever shows a good token, however many there are.
    let base = gateway.clients.clone();
    let noise = tokio::spawn(async move {
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        for n in 0.. {
            let token = format!(
                "{}.e30.AAAA",
                BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"RS256\",\"kid\":\"k{n}\"}}"))
            );
            let one = http.get(format!("{base}/v1/conversations/known/turns")).bearer_auth(token);
            tokio::spawn(one.timeout(Duration::from_secs(1)).send());
            tokio::task::yield_now().await;
            if n % 50 == 0 {
                crate::support::wait::pause().await;
            }
        }
    });
    throughout(Duration::from_secs(2), "good tokens are good", async || ask(&gateway, &good).await.0 == StatusCode::OK)
        .await;
    noise.abort();
}

/// New keys are found when a token names them; while the issuer is away its last keys hold.
async fn the_issuer_may_change_its_keys_and_be_away(db: Db) {
    let Some(mut issuer) = TestIssuer::start().await else { return };
    let gateway = gateway(&db, &issuer).await;
    let first = issuer.token("ada").await;
    issuer.control(json!({"rotate": true})).await;
    let second = issuer.token("ada").await;
    // Its first showing waits for the keys, and is not refused meanwhile.
    assert_eq!(ask(&gateway, &second).await.0, StatusCode::OK);
    assert_eq!(ask(&gateway, &first).await.0, StatusCode::UNAUTHORIZED, "its key is withdrawn");
    issuer.stop().await;
    assert_eq!(ask(&gateway, &second).await.0, StatusCode::OK);
    // A key that nobody can ask for now: not known to be wrong.
    assert_eq!(ask(&gateway, &first).await.0, StatusCode::UNAUTHORIZED, "it was refused a moment ago");
    issuer.start_again().await;
    let third = issuer.token("ada").await;
    issuer.stop().await;
    assert_eq!(ask(&gateway, &third).await.0, StatusCode::SERVICE_UNAVAILABLE);
    issuer.start_again().await;
    let fourth = issuer.token("ada").await;
    eventually("the issuer is back", async || ask(&gateway, &fourth).await.0 == StatusCode::OK).await;
    // API keys never needed it.
    issuer.stop().await;
    let keyed = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    assert_eq!(ask(&gateway, &keyed).await.0, StatusCode::OK);
}

/// The issuer's clock is an hour off, either way.
async fn the_database_says_what_time_it_is(db: Db) {
    let Some(issuer) = TestIssuer::start().await else { return };
    let gateway = gateway(&db, &issuer).await;
    for (clock, ttl, wanted, why) in [
        (0, 300, StatusCode::OK, "in time"),
        (5, 300, StatusCode::OK, "a little ahead"),
        (3600, 300, StatusCode::UNAUTHORIZED, "issued in the future"),
        (-3600, 300, StatusCode::UNAUTHORIZED, "over before it came"),
        (-3600, 3900, StatusCode::OK, "long enough to last till now"),
    ] {
        issuer.control(json!({"clock": clock, "ttl": ttl})).await;
        let (status, answer) = ask(&gateway, &issuer.token("ada").await).await;
        assert_eq!(status, wanted, "{why}: {answer}");
    }
}

/// A token runs out: calls are refused and what it opened ends, on the replica that it was shown and on others.
async fn streams_end_with_their_token_on_every_replica(db: Db) {
    let Some(issuer) = TestIssuer::start().await else { return };
    let replicas = [gateway(&db, &issuer).await, gateway(&db, &issuer).await];
    issuer.control(json!({"ttl": 8})).await;
    let token = issuer.token("ada").await;
    let claims = token.split('.').nth(1).expect("claims");
    let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("JSON");
    let ends = claims["exp"].as_i64().expect("a time");
    let turn = replicas[0].client_with(&token).submit("c", "m", "hello").await;
    let (mut streams, mut answers) = (Vec::new(), Vec::new());
    for (n, replica) in replicas.iter().enumerate() {
        let client = replica.client_with(&token);
        streams.push(client.session("c", None).await);
        streams.push(client.turn_stream(turn.turn_id, None).await);
        // Other dialects, whose requests arm turns that nobody runs.
        let messages = json!([{"id": "1", "role": "user", "content": "hello"}]);
        let agui = json!({"threadId": format!("agui-{n}"), "runId": "r", "messages": messages});
        let message = json!([{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]);
        let ui = json!({"id": format!("ui-{n}"), "messages": message});
        for (path, body) in [("/agui/bot", agui), ("/ui/bot", ui)] {
            let sent = client.request(reqwest::Method::POST, path).json(&body).send();
            let answer = within(path, sent).await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            answers.push((path, answer));
        }
    }
    let in_time = async || {
        let late = format!("SELECT extract(epoch FROM clock_timestamp() - to_timestamp({ends})) * 1000");
        let late = db.number(&late).await;
        assert!((-50..1000).contains(&late), "{late} ms after the token's end");
    };
    for stream in &mut streams {
        assert_eq!(stream.rest().await.1, End::Aborted, "its turn has no terminal");
        in_time().await;
    }
    for (path, mut answer) in answers {
        let broken = loop {
            match within(path, answer.chunk()).await {
                Ok(Some(_)) => {}
                end => break end.is_err(),
            }
        };
        assert!(broken, "{path} has no clean end");
        in_time().await;
    }
    for replica in &replicas {
        assert_eq!(ask(replica, &token).await.0, StatusCode::UNAUTHORIZED);
    }
}
