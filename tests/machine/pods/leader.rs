//! Leadership is for who has both, the API server and the database.

use std::time::{Duration, Instant};

use lastword::leadership::Leadership;
use lastword::operator::OperatorConfig;
use lastword::operator::leader::elect;
use lastword::store::{PoolSizes, Store};
use tokio_util::sync::CancellationToken;

use super::api_server::{ApiServer, config};
use crate::support::Db;
use crate::support::forwarder::Forwarder;
use crate::support::wait::eventually;

crate::newest! {
    a_leader_without_its_database_makes_room,
}

/// A leader that reaches the API server and not the database gives the Lease back, for a replica that has both. It takes
/// part again when its database is back. When the database is away for everybody nobody leads, and then somebody does.
async fn a_leader_without_its_database_makes_room(db: Db) {
    let (server, client) = ApiServer::start().await;
    let end = CancellationToken::new();
    let replica = |name: &str, database: &Forwarder| {
        let (config, client) = (OperatorConfig { identity: name.into(), ..config() }, client.clone());
        let store = Store::open(database.options(), PoolSizes::default());
        elect(&config, store, move || std::future::ready(Ok(client.clone())), end.clone())
    };
    let leads = async |what: &str, replica: &Leadership| {
        eventually(what, async || replica.is_leader()).await;
    };
    let databases = [Forwarder::start(db.options()), Forwarder::start(db.options())];
    let first = replica("c-1", &databases[0]);
    leads("the first leads", &first).await;
    let second = replica("c-2", &databases[1]);

    databases[0].cut();
    let cut = Instant::now();
    leads("the second leads", &second).await;
    assert!(!first.is_leader() && cut.elapsed() > Duration::from_secs(10), "a blink changes no leader");
    let held = || server.lock().lease.as_ref().and_then(|l| l["holderIdentity"].as_str().map(str::to_owned));
    assert_eq!(held().as_deref(), Some("c-2"));

    databases[1].cut();
    eventually("nobody leads", async || held().is_none()).await;
    assert!(!first.is_leader() && !second.is_leader());
    databases[0].mend();
    leads("who has a database leads", &first).await;
    end.cancel();
}
