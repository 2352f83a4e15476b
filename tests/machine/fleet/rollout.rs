//! A changed Agent: its workers are replaced by those that work, and no turn ends for it.

use serde_json::json;

use super::{ORGANIZATION, Scene};
use crate::support::Db;
use crate::support::wait::eventually;
use lastword::store::{ClaimFor, ClaimOrder, Store, WorkerWord};
use lastword::turn::frame::{Frame, Span};
use lastword::turn::keys::{Grouping, Incarnation, TurnId};
use lastword::turn::terminal::Outcome;

/// A worker that writes its credential into the file of this name, and never connects by itself.
fn confess(file: &str) -> [String; 3] {
    ["sh".into(), "-c".into(), format!("echo $LASTWORD_CREDENTIAL > {file}; exec sleep 300")]
}

async fn claimed(store: &Store, incarnation: Incarnation) -> Vec<TurnId> {
    let claim = ClaimFor { incarnation, room: 1, together: false, order: ClaimOrder::default() };
    store.claim(claim).await.expect("claims").into_iter().map(|c| c.turn_id).collect()
}

async fn finish(store: &Store, incarnation: Incarnation, turn: TurnId) {
    let word = WorkerWord {
        incarnation,
        turn_ids: vec![turn],
        reply_id: turn.to_string(),
        outcome: Outcome::Reply,
        finish_reason: None,
        end: 2,
        tail: Span::new(0, vec![Frame::text("ok")]),
    };
    assert_eq!(store.finish(word).await, Ok(true));
}

/// Limits and times change nothing of a worker that runs. A config that does not work replaces nobody. One that works takes
/// over, and the one before ends its turn first, however little time it has to drain.
async fn what_works_replaces_what_worked(db: Db) {
    for scope in ["Agent", "Conversation"] {
        let scene = Scene::new(&db.store).await;
        let name = scope.to_lowercase();
        let put = async |command: [String; 3], max: u32| {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let rest = json!({"scope": scope, "limits": {"maxWorkers": max}, "timing": {"drainSeconds": 1}});
            scene.agent(&name, &command, rest).await;
        };
        put(confess("first"), 1).await;
        let grouping = if scope == "Agent" { Grouping::PerAgent } else { Grouping::PerConversation };
        let arm = async |conversation: &str| scene.armed(&name, &format!("{name}-{conversation}"), grouping).await;
        let turn = arm("c").await;
        let first = scene.connect(&scene.line("first").await).await;
        assert_eq!(claimed(&scene.store, first).await, [turn]);
        let mine = |w: &lastword::store::Lease| w.organization == ORGANIZATION && w.agent == name;
        put(confess("first"), 2).await;

        // The second config ends before it connects.
        put(["sh".into(), "-c".into(), "echo x >> tried; exit 7".into()], 2).await;
        eventually("it was tried", async || {
            let tried = std::fs::read_to_string(scene.directory.path().join("tried")).unwrap_or_default();
            (tried.lines().count() >= 2).then_some(())
        })
        .await;
        let workers =
            async || scene.store.living_workers().await.expect("reads").into_iter().filter(mine).collect::<Vec<_>>();
        let served =
            async || workers().await.into_iter().any(|w| w.incarnation == first && !w.stopping && w.config == 1);
        assert!(served().await, "{scope}: {:?}", workers().await);
        finish(&scene.store, first, turn).await;
        let next = arm("c").await;
        eventually("the one that works goes on", async || (claimed(&scene.store, first).await == [next]).then_some(()))
            .await;

        // The third works.
        put(confess("third"), 2).await;
        let third = scene.connect(&scene.line("third").await).await;
        let last = match scope {
            "Agent" => Some(arm("d").await),
            _ => None,
        };
        if let Some(last) = last {
            assert!(claimed(&scene.store, first).await.is_empty(), "it retires");
            assert_eq!(claimed(&scene.store, third).await, [last]);
        }
        eventually("it retires", async || {
            workers().await.iter().any(|w| w.incarnation == first && w.retiring).then_some(())
        })
        .await;
        finish(&scene.store, first, next).await;
        eventually("it leaves", async || workers().await.iter().all(|w| w.incarnation != first).then_some(())).await;
        if let Some(last) = last {
            finish(&scene.store, third, last).await;
        }
        scene.end().await;
        db.sql("DELETE FROM lease").await;
    }
}

crate::newest!(what_works_replaces_what_worked);
