//! Plans that are kept: reads by key are planned once a session, also where the tables were empty then.

use lastword::local::postgres::Version;
use lastword::store::{PoolSizes, Store};
use lastword::turn::keys::TurnId;

use super::counted::{backends, counted, measured, touched_by};
use super::million::{fill, filled};
use crate::support::Db;

#[test]
fn kept_plans_do_not_mind_what_was_there_when_they_were_made_on_15() {
    counted(Version::V15, planned_while_there_was_nothing);
}

#[test]
fn kept_plans_do_not_mind_what_was_there_when_they_were_made_on_18() {
    counted(Version::V18, planned_while_there_was_nothing);
}

async fn planned_while_there_was_nothing(db: &Db) {
    let others = backends(db).await;
    let early = measured(db, PoolSizes { general: 3, vital: 1 });
    let read = async |store: &Store, turn: TurnId| {
        store.turn_head(turn).await.expect("reads");
        store.turn_view(turn).await.expect("reads");
        store.read_log(turn, 0, 100).await.expect("reads");
    };
    read(&early, TurnId::new()).await;
    fill(db, 0, 20_000).await;
    let (scanned, pages) = touched_by(db, &others, early, async |store, i| {
        read(store, TurnId(filled(1, 1000 + i))).await;
        read(store, TurnId(filled(4, 9700 + 97 * i))).await;
    })
    .await;
    println!("head, view and log of an open and of an ended turn touch {pages} pages");
    assert!(scanned.is_empty() && pages < 100, "{pages} pages; scanned: {scanned:?}");
}
