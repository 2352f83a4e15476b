//! A network that swallows everything and closes nothing: no call waits for TCP to give up.

use std::time::{Duration, Instant};

use lastword::store::{ArmError, Heard, PoolSizes, Store, StoreError};
use lastword::turn::keys::{Incarnation, TurnId};
use lastword::turn::reason::Reason;

use crate::steps::try_tick;
use crate::support::Db;
use crate::support::actors::{arm, failure};
use crate::support::forwarder::Forwarder;
use crate::support::wait::eventually_within;

/// Longer than the store's deadline, by what a busy machine needs.
const SOON: Duration = Duration::from_secs(30);

/// Arms a turn, which nothing but the database can refuse.
async fn armed_or_away(store: &Store) -> Result<(), StoreError> {
    store.arm(arm("c")).await.map(drop).map_err(|error| match error {
        ArmError::Store(error) => error,
        refused => panic!("{refused}"),
    })
}

/// Every kind of call says within its deadline that the database is unavailable: single statements, several on one
/// connection, transactions, batches, the listener. Afterwards no place in a pool is taken by a dead connection.
async fn a_silent_network_holds_nobody(db: Db) {
    let forwarder = Forwarder::start(db.options());
    let store = Store::open(forwarder.options(), PoolSizes { general: 4, vital: 2 });
    let all = async || {
        let calls = (
            async { store.ping().await },
            async { store.fail_turn(TurnId::new(), &failure(Reason::Cancelled)).await.map(drop) },
            async { store.turn_record(TurnId::new()).await.map(drop) },
            async { armed_or_away(&store).await },
            async { try_tick(&store, &[]).await.map(drop) },
            async { store.fail_worker(Incarnation::new(), &failure(Reason::NodeLost)).await.map(drop) },
        );
        let begun = Instant::now();
        let answers = tokio::join!(calls.0, calls.1, calls.2, calls.3, calls.4, calls.5);
        let answers = [answers.0, answers.1, answers.2, answers.3, answers.4, answers.5];
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        answers
    };
    for answer in all().await {
        answer.expect("the database is there");
    }
    let mut hearing = store.hear();
    assert_eq!(hearing.next().await, Heard::Missed, "it hears, and may have missed what came before");
    forwarder.silence();
    for answer in all().await {
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    forwarder.mend();
    let heard = tokio::time::timeout(SOON, hearing.next()).await;
    assert_eq!(heard.expect("a silent connection is given up"), Heard::Missed);
    // One that was idle all the while is found out by its next call.
    eventually_within(SOON, "dead connections leave their places", async || all().await.iter().all(Result::is_ok))
        .await;
}

crate::both!(a_silent_network_holds_nobody);
