//! Every dialect has the same walls: a turn is its owner's alone, a key that is good no more opens nothing and breaks what it opened,
//! and a user's limits count whatever the dialect.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use lastword::gateway::AuthMode;
use lastword::store::Store;
use lastword::store::keys::{self, KeyRole, NewKey};
use reqwest::StatusCode;

use super::bytes::{Dialect, dialects, play};
use crate::support::Db;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::wait::{eventually, within};

crate::newest! {
    nobody_else_is_shown_a_turn,
    a_revoked_key_ends_within_moments_on_every_replica,
    an_expired_key_ends,
    who_has_no_place_for_a_stream_starts_no_turn,
}

async fn with_keys(db: &Db) -> Gateway {
    Gateway::with(db.options(), |c| c.auth = AuthMode::Keys).await
}

async fn nobody_else_is_shown_a_turn(db: Db) {
    let gateway = with_keys(&db).await;
    let ada = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1;
    let bob = api_key(&db.store, ORGANIZATION, "bob", KeyRole::User).await.1;
    let eve = api_key(&db.store, "elsewhere", "eve", KeyRole::User).await.1;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    for one in play(&gateway.client_with(&ada), &mut worker).await {
        let Dialect { name, to_others, .. } = one.dialect;
        for (key, wanted) in [&bob, &eve].into_iter().zip(to_others) {
            let mut answer = one.open(&gateway.client_with(key)).await;
            assert_eq!(answer.status().as_u16(), wanted, "{name}");
            if wanted == 200 {
                let begun = within("its begin", answer.chunk()).await.expect("open").expect("open");
                let begun = String::from_utf8_lossy(&begun).into_owned();
                assert!(!begun.contains(&one.turn.to_string()) && !begun.contains("half"), "{name}: {begun}");
            }
        }
        assert_eq!(one.open(&gateway.client()).await.status(), StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(one.open(&gateway.client_with(&ada)).await.status(), StatusCode::OK, "{name}");
    }
}

async fn a_revoked_key_ends_within_moments_on_every_replica(db: Db) {
    let gateways = [with_keys(&db).await, with_keys(&db).await];
    let (id, key) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    let clients = gateways.each_ref().map(|gateway| gateway.client_with(&key));
    let mut worker = FakeWorker::on(&db.store, &gateways[0]).await;
    let played = play(&clients[0], &mut worker).await;
    let mut open = Vec::new();
    for one in &played {
        for client in &clients {
            open.push((one, one.watch(client).await));
        }
    }
    assert!(keys::revoke(db.store.pool(), id).await.expect("revokes"));
    db.store.notify_keys_changed().await;
    let revoked = Instant::now();
    for one in &played {
        for client in &clients {
            eventually("the key is refused", async || one.open(client).await.status() == StatusCode::UNAUTHORIZED)
                .await;
        }
    }
    for (one, stream) in open {
        one.is_broken(&within("the break", stream).await.expect("no panic"));
    }
    println!("refused and broken everywhere after {:?}", revoked.elapsed());
    assert!(revoked.elapsed() < Duration::from_secs(5), "within moments, on a busy machine");
}

async fn brief_key(store: &Store, valid_for: Duration) -> String {
    let (organization, name) = (ORGANIZATION.into(), "ada".to_owned());
    let new = NewKey { organization, user: name.clone(), name, role: KeyRole::User, valid_for: Some(valid_for) };
    keys::create(store.pool(), &new).await.expect("a key").1.reveal()
}

async fn an_expired_key_ends(db: Db) {
    let gateway = with_keys(&db).await;
    let brief = brief_key(&db.store, Duration::from_secs(2)).await;
    let ada = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let brief = gateway.client_with(&brief);
    for one in play(&ada, &mut worker).await {
        eventually("the key is refused", async || one.open(&brief).await.status() == StatusCode::UNAUTHORIZED).await;
        assert_eq!(one.open(&ada).await.status(), StatusCode::OK, "{}", one.dialect.name);
    }
}

/// The places are taken before the turn is armed.
async fn who_has_no_place_for_a_stream_starts_no_turn(db: Db) {
    let gateway = Gateway::with(db.options(), |c| {
        c.auth = AuthMode::Keys;
        c.quotas.streams = NonZeroU32::new(1);
    })
    .await;
    let ada = gateway.client_with(&api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await.1);
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let played = play(&ada, &mut worker).await;
    let _first = played[0].open(&ada).await;
    for one in &played {
        let answer = one.open(&ada).await;
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{}", one.dialect.name);
        assert!(answer.headers().contains_key("retry-after"));
    }
    for dialect in dialects() {
        let name = format!("{}-new", dialect.name);
        let Some(body) = (dialect.body)(&name) else { continue };
        let request = ada.request(dialect.method.clone(), &(dialect.path)(&name, played[0].turn)).json(&body);
        assert_eq!(
            within("an answer", request.send()).await.expect("an answer").status(),
            StatusCode::TOO_MANY_REQUESTS
        );
    }
    assert_eq!(db.count("turn").await as usize, played.len());
}
