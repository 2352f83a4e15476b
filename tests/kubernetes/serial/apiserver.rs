//! The API server is away during chats, and a gateway and a controller are restarted meanwhile. And it comes back with
//! other resource versions than the controllers know, so that they list anew.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::scene::agents::{ACTOR, exec, shell, with};
use crate::scene::cluster::Cluster;
use crate::scene::place::Place;
use crate::scene::times::tell;
use crate::scene::{BOUND, follow, long, processes};
use crate::support::wait::pause;

#[tokio::test(flavor = "multi_thread")]
async fn chats_go_on_while_the_api_server_is_away() {
    let Some(cluster) = Cluster::connect_local("the API server").await else { return };
    let away = Duration::from_secs(if long() { 60 } else { 20 });
    let place = Place::new(cluster, "apiserver").await;
    place.agent("agent", with(shell(ACTOR), json!({"limits": {"turnsPerWorker": 10}}))).await;
    place.agent("echo", with(exec(&["cat"]), json!({"limits": {"minWorkers": 1}}))).await;
    let long_chat = place.chat("agent", "x").await;
    long_chat.begun().await;
    let object = place.object("agent", "x").await;
    let object_turn = object.turn(&place).await;
    place.api.turn(&object_turn).frame("the object's program has begun", |f| f.event == "text").await;
    place.chat("echo", "before").await.replied(&place, "before\n").await;
    // Found while the API server can still tell their containers.
    let gateway = processes::first_of(&place.cluster.pods_of("gateway").await[0], "gateway");
    let controller = processes::first_of(&place.cluster.pods_of("controller").await[0], "controller");

    place.cluster.control(&["apiserver", "stop"]).await;
    let begun = Instant::now();
    let (mut chats, mut restarted, mut released) = (0, false, false);
    while begun.elapsed() < away {
        let message = format!("message {chats}");
        let ended = follow::ask(&place.api, "echo", &message, BOUND).await.expect("a chat with a living worker");
        assert_eq!(
            (ended.outcome.as_str(), ended.text.as_str(), ended.endings),
            ("Succeeded", format!("{message}\n").as_str(), 1)
        );
        chats += 1;
        if !restarted && begun.elapsed() > away / 4 {
            gateway.signal(Signal::KILL);
            controller.signal(Signal::KILL);
            restarted = true;
        }
        if !released && begun.elapsed() > away / 2 {
            for turn in [&long_chat.turn, &object_turn] {
                processes::program_of(turn).await.0.signal(Signal::USR1);
            }
            released = true;
        }
        pause().await;
    }
    let record = place.api.phase(&object_turn, "Succeeded").await;
    assert_eq!(
        record["reply"]["text"], "begun\ndone\n",
        "the object's turn has ended, though nobody can write it there"
    );
    let ended =
        follow::follow(&place.api, &long_chat.conversation, &long_chat.turn, long_chat.cursor.clone(), BOUND).await;
    let ended = ended.expect("the long chat");
    assert_eq!((ended.outcome.as_str(), ended.text.as_str(), ended.endings), ("Succeeded", "begun\ndone\n", 1));

    place.cluster.control(&["apiserver", "start"]).await;
    let back = Instant::now();
    object.replied(&place, "begun\ndone\n").await;
    tell(
        "API server",
        &format!(
            "{chats} chats while the API server was away for {} s; a status caught up {:.1} s after",
            away.as_secs(),
            back.elapsed().as_secs_f64()
        ),
    );
    // What needs the API server works again: a new worker.
    place.agent("after", exec(&["cat"])).await;
    place.chat("after", "after").await.replied(&place, "after\n").await;
    place.cluster.settled().await;
    place.done().await;
}

/// Watches are cut and begin anew; who lives is not dead for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_api_server_fails_no_turn() {
    let Some(cluster) = Cluster::connect_local("the API server").await else { return };
    let place = Place::new(cluster, "relist").await;
    place.agent("agent", with(shell(ACTOR), json!({"limits": {"turnsPerWorker": 20}}))).await;
    let mut chats = Vec::new();
    for _ in 0..5 {
        let chat = place.chat("agent", "x").await;
        chat.begun().await;
        chats.push(chat);
    }
    for _ in 0..2 {
        place.cluster.control(&["apiserver", "kill"]).await;
        place.cluster.control(&["apiserver", "start"]).await;
        // A turn that came and went in between is known by the list alone.
        let object = place.object("agent", "x").await;
        let turn = object.turn(&place).await;
        place.api.turn(&turn).frame("the object's program has begun", |f| f.event == "text").await;
        processes::program_of(&turn).await.0.signal(Signal::USR1);
        object.replied(&place, "begun\ndone\n").await;
    }
    for chat in &chats {
        assert_eq!(place.api.record(&chat.turn).await["phase"], "Running");
        processes::program_of(&chat.turn).await.0.signal(Signal::USR1);
        chat.replied(&place, "begun\ndone\n").await;
    }
    place.done().await;
}
