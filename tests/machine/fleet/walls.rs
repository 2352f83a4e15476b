//! Whose worker is whose: real processes, of conversations that are called the same, and of those that are gone.

use lastword::fleet::{FleetConfig, WorkerRuntime};
use lastword::store::{Actor, Lease};
use lastword::turn::keys::WorkerGroup;
use serde_json::json;

use super::{CONFESS, ORGANIZATION, Scene};
use crate::support::Db;
use crate::support::wait::eventually;

crate::newest! {
    a_worker_whose_conversation_is_erased_is_drained,
    a_worker_is_drained_whose_conversation_went_while_nobody_looked,
}

/// The worker of this conversation, once there is one.
async fn worker_of(scene: &Scene, conversation: &str) -> Lease {
    let group = group_of(scene, conversation).await;
    scene.worker(|w| w.worker_group == group).await
}

async fn group_of(scene: &Scene, conversation: &str) -> WorkerGroup {
    let found = scene.store.conversation("default", "ada", conversation).await.expect("answers").expect("it exists");
    WorkerGroup::OfConversation(found.id)
}

/// At once, though polls are rare; and under the same name there is another worker.
async fn a_worker_whose_conversation_is_erased_is_drained(db: Db) {
    let scene = Scene::new(&db.store).await;
    scene.agent("a", CONFESS, json!({"timing": {"drainSeconds": 1, "idleSeconds": 3600}})).await;
    scene.arm("a", "c").await;
    scene.arm("a", "kept").await;
    let (first, kept) = (worker_of(&scene, "c").await, worker_of(&scene, "kept").await);
    let conversation = first.worker_group.conversation().expect("a conversation's");
    scene
        .store
        .erase_conversation(conversation, Actor { organization: ORGANIZATION, user: "ada", key: None })
        .await
        .expect("erases");
    eventually("its worker is gone", async || {
        let living = scene.store.living_workers().await.expect("workers");
        !living.iter().any(|w| w.start_id == first.start_id) && !scene.runtime.running().await.contains(&first.start_id)
    })
    .await;
    scene.arm("a", "c").await;
    let again = worker_of(&scene, "c").await;
    assert!(again.start_id != first.start_id && again.worker_group != first.worker_group);
    assert!(scene.runtime.running().await.contains(&kept.start_id), "the other conversation's runs on");
    scene.end().await;
}

/// Whoever removed the conversation died right behind it, and no fleet ran: the next one sees it all the same.
async fn a_worker_is_drained_whose_conversation_went_while_nobody_looked(db: Db) {
    let scene = Scene::with(&db.store, FleetConfig::default()).await;
    scene.agent("a", CONFESS, json!({"timing": {"drainSeconds": 1, "idleSeconds": 3600}})).await;
    scene.arm("a", "c").await;
    worker_of(&scene, "c").await;
    db.sql("DELETE FROM marker").await;
    db.sql("DELETE FROM turn").await;
    db.sql("DELETE FROM conversation").await;
    scene.nobody_left().await;
    scene.end().await;
}
