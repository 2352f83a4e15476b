//! The watch is cut, events are lost, lists are stale: nothing alive is failed, and what happened comes out in the end.

use std::sync::Arc;
use std::time::Duration;

use lastword::fleet::{Death, WorkerRuntime};
use lastword::operator::pods::{PodRuntime, Pods};
use lastword::turn::keys::TurnId;
use lastword::turn::reason::Reason;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::api_server::{ApiServer, config, oom_killed, pod, running};
use super::{UID, kubernetes};
use crate::support::Db;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::{eventually, within};

crate::newest! {
    stale_lists_kill_nobody_and_lost_news_comes_out,
    a_deletion_is_a_drain,
    a_deletion_by_force_is_a_short_drain,
    news_waits_for_the_database_that_knows_the_pod,
}

/// A worker in the pod, with a turn in hand, and a controller that watches it.
struct Scene {
    server: ApiServer,
    deaths: UnboundedReceiver<Death>,
    worker: FakeWorker,
    turn: TurnId,
    shutdown: CancellationToken,
    _gateway: Gateway,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn scene(db: &Db) -> Scene {
    let gateway = Gateway::start(db).await;
    let mut worker = FakeWorker::new(&db.store, kubernetes).await;
    assert!(db.store.record_pod_of_start(worker.credential.start, UID, 30).await.expect("answers"));
    worker.connect(&gateway, &[]).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.this_turn(turn).await;

    let (server, client) = ApiServer::start().await;
    server.put(pod(running()));
    let pods = Pods::new(client, db.store.clone(), config());
    let deaths = PodRuntime(pods.clone()).deaths();
    let shutdown = CancellationToken::new();
    tokio::spawn(Arc::clone(&pods).watch(shutdown.clone()));
    tokio::spawn(pods.observe(shutdown.clone()));
    let scene = Scene { server, deaths, worker, turn, shutdown, _gateway: gateway };
    eventually("a watch", async || scene.server.watched()).await;
    scene
}

impl Scene {
    /// It is listed again, after what was changed.
    async fn relisted(&self) {
        let before = self.server.lock().lists;
        eventually("another list", async || self.server.lock().lists > before).await;
    }

    async fn death(&mut self) -> Reason {
        let death = within("a death", self.deaths.recv()).await.expect("it is told");
        assert_eq!(death.start_id, self.worker.credential.start);
        death.cause.expect("a cause").reason
    }
}

async fn stale_lists_kill_nobody_and_lost_news_comes_out(db: Db) {
    let mut scene = scene(&db).await;
    {
        let mut cluster = scene.server.lock();
        (cluster.gone, cluster.lists_nothing) = (true, true);
    }
    scene.server.cut();
    scene.relisted().await;
    scene.relisted().await;
    assert!(scene.deaths.try_recv().is_err());
    assert_eq!(db.lease(scene.worker.incarnation).await.as_deref(), Some("live"));

    // While nobody watches, the container dies.
    scene.server.put(pod(oom_killed()));
    {
        let mut cluster = scene.server.lock();
        (cluster.gone, cluster.lists_nothing) = (false, false);
    }
    assert_eq!(scene.death().await, Reason::OutOfMemory);

    // Its deletion is lost altogether: nothing is concluded from it.
    scene.server.lock().objects.clear();
    scene.server.cut();
    eventually("a watch", async || scene.server.watched()).await;
    assert!(db.outcome(scene.turn).await.is_none(), "the fleet, which is not here, fails it");
}

async fn a_deletion_is_a_drain(db: Db) {
    let mut scene = scene(&db).await;
    let mut deleted = pod(running());
    deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:10:00Z");
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(300);
    deleted["status"]["conditions"] =
        json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
    scene.server.put(deleted.clone());
    let Some(lastword::wire::ToWorker::Drain { seconds }) = scene.worker.line().await else { panic!("a drain") };
    assert!((290..=300).contains(&seconds), "{seconds}");
    assert_eq!(db.store.stop_reason_of_worker(scene.worker.incarnation).await.expect("answers"), Some(Reason::Evicted));
    // A graceful agent: nothing fails while it drains in time.
    scene.worker.reply(&[scene.turn], "in time").await.expect("taken");
    assert_eq!(db.ending(scene.turn).await, "reply");
    deleted["status"]["containerStatuses"][0]["state"] = oom_killed();
    scene.server.put(deleted);
    assert_eq!(scene.death().await, Reason::OutOfMemory);
}

async fn a_deletion_by_force_is_a_short_drain(db: Db) {
    let mut scene = scene(&db).await;
    scene.server.remove("bot-1");
    let Some(lastword::wire::ToWorker::Drain { seconds }) = scene.worker.line().await else { panic!("a drain") };
    assert!(seconds <= 2, "{seconds}");
    assert_eq!(db.store.stop_reason_of_worker(scene.worker.incarnation).await.expect("answers"), Some(Reason::Deleted));
    assert!(scene.deaths.try_recv().is_err(), "its end was not seen");
}

/// A container may end before anybody has recorded whose it is.
async fn news_waits_for_the_database_that_knows_the_pod(db: Db) {
    let mut scene = scene(&db).await;
    db.sql("UPDATE lease SET pod_uid = NULL").await;
    let (pods, leadership) = {
        let (server, client) = ApiServer::start().await;
        server.put(pod(oom_killed()));
        scene.server = server;
        (Pods::new(client, db.store.clone(), config()), lastword::leadership::Leadership::always())
    };
    scene.deaths = PodRuntime(pods.clone()).deaths();
    tokio::spawn(Arc::clone(&pods).watch(scene.shutdown.clone()));
    tokio::spawn(Arc::clone(&pods).observe(scene.shutdown.clone()));
    tokio::spawn(pods.clone().clean_up(leadership.clone(), scene.shutdown.clone()));
    eventually("a watch", async || scene.server.watched()).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), scene.deaths.recv()).await.is_err());
    assert!(db.store.record_pod_of_start(scene.worker.credential.start, UID, 30).await.expect("answers"));
    assert_eq!(scene.death().await, Reason::OutOfMemory);
}
