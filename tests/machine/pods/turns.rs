//! The watch of AgentTurns is cut, events are lost, watches are too old, lists are old: the state converges, and no turn
//! whose object is there is cancelled.

use std::sync::Arc;

use lastword::egress::{Egress, Outbound, Reach};
use lastword::guard::{Evaluators, Services};
use lastword::leadership::Leadership;
use lastword::operator::turns;
use lastword::secrets::NoSecrets;
use lastword::turn::keys::TurnId;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::api_server::ApiServer;
use crate::support::Db;
use crate::support::LASTWORD;
use crate::support::gateway::{AGENT, ORGANIZATION};
use crate::support::wait::eventually;

crate::newest! {
    what_changed_while_no_watch_was_heard_comes_out,
    objects_that_went_unseen_are_cancelled_and_no_others,
    a_list_from_before_an_arm_cancels_nothing,
}

/// A leader that follows the AgentTurns of an API server.
struct Scene {
    server: ApiServer,
    leader: CancellationToken,
    client: kube::Client,
    db: Db,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.leader.cancel();
    }
}

async fn scene(db: Db) -> Scene {
    let (server, client) = ApiServer::start().await;
    let mut scene = Scene { server, leader: CancellationToken::new(), client, db };
    scene.lead().await;
    scene
}

impl Scene {
    /// A leader begins, and has its watch.
    async fn lead(&mut self) {
        self.leader = CancellationToken::new();
        let outbound = Outbound::new(Egress::default(), Reach::Cluster).expect("a client");
        let services = Services::new(outbound, Arc::new(NoSecrets), Evaluators::new(LASTWORD));
        let namespaces: Arc<[String]> = Arc::from([]);
        let (store, client) = (self.db.store.clone(), self.client.clone());
        tokio::spawn(turns::run(store, client, services, namespaces, Leadership::always(), self.leader.clone()));
        self.watched().await;
    }

    /// The watch breaks, and is too old to go on: everything is listed again, after `meanwhile`.
    async fn cut(&self, meanwhile: impl FnOnce(&ApiServer)) {
        let before = {
            let mut cluster = self.server.lock();
            cluster.gone = true;
            cluster.lists
        };
        self.server.cut();
        meanwhile(&self.server);
        eventually("another list", async || self.server.lock().lists > before).await;
        self.server.lock().gone = false;
    }

    async fn watched(&self) {
        eventually("a watch", async || self.server.watched()).await;
    }

    /// The object's status.
    fn status(&self, name: &str) -> Value {
        self.server.lock().objects[name]["status"].clone()
    }

    async fn phase(&self, name: &str, phase: &str) {
        eventually(&format!("{name} to be {phase}"), async || self.status(name)["phase"] == phase).await;
    }

    async fn armed(&self, name: &str) -> TurnId {
        self.phase(name, "Armed").await;
        self.status(name)["turnId"].as_str().expect("a turn").parse().expect("an id")
    }

    async fn cancelled(&self, turn: TurnId) {
        eventually("the turn to be cancelled", async || {
            self.db.text(format!("SELECT reason FROM terminal WHERE turn_id = '{turn}'")).await.as_deref()
                == Some("Cancelled")
        })
        .await;
    }

    async fn open(&self, turn: TurnId) -> bool {
        self.db.count(&format!("marker WHERE turn_id = '{turn}'")).await == 1
    }
}

fn turn(name: &str) -> Value {
    json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "AgentTurn",
        "metadata": {"name": name, "namespace": ORGANIZATION, "uid": format!("uid-of-{name}"), "generation": 1,
                     "creationTimestamp": k8s_openapi::jiff::Timestamp::now().to_string()},
        "spec": {"agentRef": {"name": AGENT}, "input": "hello"},
    })
}

async fn what_changed_while_no_watch_was_heard_comes_out(db: Db) {
    let scene = scene(db).await;
    scene.server.put(turn("first"));
    let first = scene.armed("first").await;

    let mut cancel = scene.server.lock().objects["first"].clone();
    cancel["spec"]["cancel"] = json!(true);
    cancel["metadata"]["generation"] = json!(2);
    let nobody_hears = |server: &ApiServer| {
        server.put(turn("second"));
        server.put(cancel);
    };
    scene.cut(nobody_hears).await;

    scene.armed("second").await;
    scene.cancelled(first).await;
    scene.phase("first", "Failed").await;
}

/// Also by a leader that never knew them.
async fn objects_that_went_unseen_are_cancelled_and_no_others(db: Db) {
    let mut scene = scene(db).await;
    let mut turns = Vec::new();
    for name in ["stays", "goes", "leaves"] {
        scene.server.put(turn(name));
        turns.push(scene.armed(name).await);
    }
    scene.cut(|server| drop(server.lock().objects.remove("goes"))).await;
    scene.cancelled(turns[1]).await;

    scene.leader.cancel();
    scene.server.cut();
    scene.server.lock().objects.remove("leaves");
    scene.lead().await;
    scene.cancelled(turns[2]).await;
    assert!(scene.open(turns[0]).await);
    assert_eq!(scene.status("stays")["phase"], "Armed");
}

/// The list that a leader asks for what vanished with is held up; what it does not show was made after it.
async fn a_list_from_before_an_arm_cancels_nothing(db: Db) {
    let scene = scene(db).await;
    scene.server.put(turn("known"));
    scene.armed("known").await;

    // The watch's own list is let go, and behind it comes the one that looks for what vanished.
    let held = Arc::new(Notify::new());
    scene.server.lock().held = Some(held.clone());
    scene.cut(|_| ()).await;
    let before = scene.server.lock().lists;
    held.notify_one();
    eventually("the second list", async || scene.server.lock().lists > before).await;
    scene.watched().await;
    scene.server.put(turn("late"));
    let late = scene.armed("late").await;
    scene.server.lock().held = None;
    held.notify_one();

    // The next list, whose answer cancels what is gone by now, came after that one's.
    let known = scene
        .db
        .text("SELECT turn_id FROM agent_turn WHERE name = 'known'")
        .await
        .expect("tied")
        .parse()
        .expect("an id");
    scene.cut(|server| drop(server.lock().objects.remove("known"))).await;
    scene.cancelled(known).await;
    assert!(scene.open(late).await);
}
