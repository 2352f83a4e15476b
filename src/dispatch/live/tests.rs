//! What is taken, kept and held of live logs.

use proptest::prelude::*;

use super::*;
use crate::turn::frame::Frame;
use crate::wire::Missing;

#[test]
fn frames_are_taken_once_and_in_order() {
    let logs = LiveLogs::new(Subscriptions::default());
    let (turn, worker) = (TurnId::new(), Incarnation::new());
    let text = |at, t: &str| Span::new(at, vec![Frame::text(t)]);
    assert_eq!(logs.accept(turn, worker, &text(0, "a")), Err(OutputRefused::NotInHand));
    logs.open(turn, ConversationId::new(), worker, 0);
    assert_eq!(logs.accept(turn, Incarnation::new(), &text(0, "a")), Err(OutputRefused::NotInHand));
    assert_eq!(logs.accept(turn, worker, &text(0, "abc")), Ok(Acked { acked: 0, received: 3 }));
    assert_eq!(logs.accept(turn, worker, &text(1, "bcd")), Ok(Acked { acked: 0, received: 4 }));
    assert_eq!(logs.accept(turn, worker, &text(9, "x")), Err(OutputRefused::Missing(Missing { acked: 4 })));
    assert_eq!(logs.read(turn, 2).map(|s| s.text()), Some("cd".into()));
    logs.attach(worker, Uuid::new_v4());
    logs.made_durable(turn, 3);
    assert_eq!(logs.tail(turn, worker), Some(text(3, "d")));
}

#[test]
fn large_frames_are_neither_kept_nor_taken_for_ever() {
    let logs = LiveLogs::new(Subscriptions::default());
    let (turn, worker) = (TurnId::new(), Incarnation::new());
    logs.attach(worker, Uuid::new_v4());
    logs.open(turn, ConversationId::new(), worker, 0);
    let large = || Frame::Data { name: "d".into(), value: "x".repeat(1024 * 1024).into() };
    let kept = || logs.with(|held| held.logs[&turn].span.frames.len());
    let taken = (0..200).take_while(|&at| {
        let taken = logs.accept(turn, worker, &Span::new(at, vec![large()]));
        assert!(matches!(taken, Ok(_) | Err(OutputRefused::Full)), "{taken:?}");
        logs.made_durable(turn, at + 1);
        assert!(kept() <= 4, "{} MiB are kept", kept());
        taken.is_ok()
    });
    assert_eq!(taken.count(), 64);
    assert_eq!(logs.read(turn, 0), None, "it is read from the store");
    assert!(!logs.passes(turn, 0) && logs.passes(turn, 64), "whoever needs more than is here asks the store");
    assert_eq!(logs.read(turn, 63).map(|s| s.frames.len()), Some(1));
}

/// What may happen to the log of one turn.
#[derive(Debug, Clone)]
enum Happens {
    Attach(bool),
    Detach,
    DetachOld,
    Open(u64),
    Accept(u64),
    MadeDurable,
    Follow,
    CloseFollowed,
    Close,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        any::<bool>().prop_map(Happens::Attach),
        Just(Happens::Detach),
        Just(Happens::DetachOld),
        (0u64..6).prop_map(Happens::Open),
        (0u64..6).prop_map(Happens::Accept),
        Just(Happens::MadeDurable),
        Just(Happens::Follow),
        Just(Happens::CloseFollowed),
        Just(Happens::Close),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a turn is held only while its worker's stream is here or it is followed, and who
    /// waits for one that was held and is not any more is told.
    #[test]
    fn what_is_held_follows_from_the_streams_and_each_change_is_told(steps in prop::collection::vec(happens(), 0..40)) {
        let subscriptions = Subscriptions::default();
        let logs = LiveLogs::new(subscriptions.clone());
        let (turn, worker, conversation) = (TurnId::new(), Incarnation::new(), ConversationId::new());
        let mut told = subscriptions.subscribe(conversation);
        let (mut stream, mut old, mut followed) = (None, Uuid::new_v4(), false);
        for step in steps {
            let before = (logs.passes(turn, 1000), told.seen());
            match step {
                Happens::Attach(again) => {
                    old = stream.filter(|_| again).unwrap_or(old);
                    logs.attach(worker, *stream.insert(Uuid::new_v4()));
                }
                Happens::Detach => stream.take().into_iter().for_each(|s| logs.detach(worker, s)),
                Happens::DetachOld => logs.detach(worker, old),
                Happens::Open(durable) => {
                    logs.open(turn, conversation, worker, durable);
                    followed = false;
                }
                Happens::Accept(at) => drop(logs.accept(turn, worker, &Span::new(at, vec![Frame::text("ab")]))),
                Happens::MadeDurable => {
                    let end = logs.with(|held| held.logs.get(&turn).map_or(0, |l| l.end));
                    logs.made_durable(turn, end);
                }
                Happens::Follow => followed |= logs.open_followed(turn, conversation, worker, 0),
                Happens::CloseFollowed => {
                    logs.close_followed(turn);
                    followed = false;
                }
                Happens::Close => logs.close(turn, worker),
            }
            let (passes, here) = (logs.passes(turn, 1000), logs.with(|held| held.logs.contains_key(&turn)));
            prop_assert_eq!(passes, here && (stream.is_some() || followed), "after {:?}", step);
            prop_assert_eq!(logs.serve(turn, 0).is_some(), here && stream.is_some() && !followed);
            prop_assert!(!before.0 || passes || told.seen() != before.1, "{step:?} was not told");
        }
    }
}
