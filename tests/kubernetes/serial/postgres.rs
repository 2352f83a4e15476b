//! An AgentTurn that is deleted while Postgres is away goes at once, and its turn is cancelled once Postgres is back.

use std::time::Duration;

use kube::api::DeleteParams;
use rustix::process::Signal;

use crate::scene::agents::{ACTOR, shell};
use crate::scene::cluster::Cluster;
use crate::scene::place::Place;
use crate::scene::{processes, until};
use crate::support::wait::{eventually_within, throughout};

#[tokio::test(flavor = "multi_thread")]
async fn an_agentturn_deleted_while_postgres_is_away_is_cancelled_later() {
    let Some(cluster) = Cluster::connect_local("the processes of Postgres").await else { return };
    let place = Place::new(cluster, "postgres").await;
    place.agent("agent", shell(ACTOR)).await;
    let (deleted, kept) = (place.object("agent", "x").await, place.object("agent", "x").await);
    let (turn, other) = (deleted.turn(&place).await, kept.turn(&place).await);
    for turn in [&turn, &other] {
        place.api.turn(turn).frame("the program has begun", |f| f.event == "text").await;
    }
    let (program, _) = processes::program_of(&turn).await;

    // Stopped, not killed: what is a restart to Postgres would be a lost disk to an emptyDir.
    let pod = place.cluster.pods_of("postgres").await.remove(0);
    let stopped = processes::of_pod(&pod);
    stopped.iter().for_each(|p| p.signal(Signal::STOP));
    place.turns().delete(&deleted.name, &DeleteParams::default()).await.expect("deletes");
    eventually_within(Duration::from_secs(5), "the object to be gone", async || {
        match place.turns().get_opt(&deleted.name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Longer than the pass of whoever looks for missing objects.
    let runs = async || !program.is_gone();
    throughout(Duration::from_secs(5), "nothing is decided without Postgres", runs).await;
    stopped.iter().for_each(|p| p.signal(Signal::CONT));

    place.api.turn(&turn).frame("its error", |f| f.event == "error" && f.data["reason"] == "Cancelled").await;
    until("the end of the program", async || if program.is_gone() { Ok(()) } else { Err(format!("{program:?}")) })
        .await;
    assert_eq!(place.api.record(&other).await["phase"], "Running", "the other one goes on");
    processes::program_of(&other).await.0.signal(Signal::USR1);
    kept.replied(&place, "begun\ndone\n").await;
    place.done().await;
}
