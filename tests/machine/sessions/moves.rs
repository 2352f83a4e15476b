//! Workers that move in the middle of a turn, with viewers on every gateway; and viewers who say that they have seen more than
//! there is.

use std::time::{Duration, Instant};

use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use reqwest::StatusCode;

use crate::support::Db;
use crate::support::client::{Stream, text};
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

crate::newest! {
    text_goes_on_everywhere_within_moments_of_a_move,
    a_quiet_worker_that_moved_is_heard_at_once,
    output_is_taken_while_streams_come_and_go,
    an_offset_beyond_the_log_holds_up_nobody_else,
}

/// So long a viewer waits for text at the most.
const MOMENTS: Duration = Duration::from_secs(2);

/// What a worker has said of a turn, which it keeps as workers do: what a gateway lacks, it says again.
struct Said {
    turn: TurnId,
    text: String,
    sent: usize,
    acked: usize,
}

impl Said {
    fn nothing(turn: TurnId) -> Said {
        Said { turn, text: String::new(), sent: 0, acked: 0 }
    }

    /// The worker has a new connection, and says again what is not known to be durable.
    async fn again(&mut self, worker: &FakeWorker) {
        self.sent = self.acked;
        self.say(worker, "").await;
    }

    async fn say(&mut self, worker: &FakeWorker, more: &str) {
        self.text += more;
        while self.sent < self.text.len() {
            let frames = vec![Frame::text(&self.text[self.sent..])];
            match worker.output(self.turn, self.sent as u64, frames).await {
                Ok(acked) => (self.sent, self.acked) = (acked.received as usize, acked.acked as usize),
                Err((StatusCode::CONFLICT, lacks)) => self.sent = lacks["acked"].as_u64().expect("acked") as usize,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// Each viewer is shown this text within [`MOMENTS`], and nothing else.
async fn shown(viewers: &mut [Stream], expected: &str, when: &str) {
    let said = Instant::now();
    for (nth, viewer) in viewers.iter_mut().enumerate() {
        let mut seen = String::new();
        while seen != expected {
            let left = MOMENTS.saturating_sub(said.elapsed());
            let event = viewer.next_within(left).await;
            let event =
                event.unwrap_or_else(|| panic!("{when}: viewer {nth} has {seen:?} of {expected:?} after {MOMENTS:?}"));
            seen += event.expect("no end").text();
            assert!(expected.starts_with(&seen), "{when}: viewer {nth} has {seen:?}");
        }
    }
    println!("{when}: everywhere after {:?}", said.elapsed());
}

/// Three gateways with a viewer each. The worker goes from one to the next: its stream is cut; it is cut with output that is not
/// durable; it stays open, and nobody notices that it is dead; the worker's posts go elsewhere for a while.
async fn text_goes_on_everywhere_within_moments_of_a_move(db: Db) {
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = FakeWorker::on(&db.store, &gateways[0]).await;
    let turn = gateways[0].client().submit("c", "m", "hello").await;
    worker.turn().await;
    let mut viewers = Vec::new();
    for gateway in &gateways {
        viewers.push(gateway.client().session("c", Some(&turn.cursor)).await);
    }
    let mut said = Said::nothing(turn.turn_id);
    said.say(&worker, "begun. ").await;
    shown(&mut viewers, "begun. ", "the beginning").await;
    let mut unnoticed = Vec::new();
    for round in 0..9 {
        let to = &gateways[(round + 1) % 3];
        let cut = ["cut", "cut at once behind output", "not noticed"][round % 3];
        let early = format!("{round} before. ");
        said.say(&worker, &early).await;
        if cut != "cut at once behind output" {
            let durable = "SELECT coalesce(max(end_at), 0) FROM output";
            eventually("it is durable", async || db.number(durable).await == said.text.len() as i64).await;
        }
        match cut {
            "not noticed" => unnoticed.extend(worker.connect(to, &[turn.turn_id]).await),
            _ => {
                worker.drop_stream();
                worker.connect(to, &[turn.turn_id]).await;
            }
        }
        said.again(&worker).await;
        let late = format!("{round} behind. ");
        said.say(&worker, &late).await;
        shown(&mut viewers, &format!("{early}{late}"), &format!("{round}, {cut}")).await;
    }
    // Its posts go by another gateway, and then by its own again.
    let own = std::mem::replace(&mut worker.gateway, gateways[2].workers.clone());
    said.say(&worker, "elsewhere. ").await;
    worker.gateway = own;
    let durable = "SELECT coalesce(max(end_at), 0) FROM output";
    eventually("it is durable", async || db.number(durable).await == said.text.len() as i64).await;
    said.say(&worker, "here. ").await;
    shown(&mut viewers, "elsewhere. here. ", "posts by another gateway").await;
    worker.end(turn.turn_id, said.text.len() as u64).await.expect("accepted");
    for viewer in &mut viewers {
        assert_eq!(viewer.until("complete").await.len(), 1);
    }
}

/// The worker says nothing for a while after its move: what it says then does not wait for anybody's next look.
async fn a_quiet_worker_that_moved_is_heard_at_once(db: Db) {
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = FakeWorker::on(&db.store, &gateways[0]).await;
    let turn = gateways[0].client().submit("c", "m", "hello").await;
    worker.turn().await;
    worker.connect(&gateways[1], &[turn.turn_id]).await;
    let mut viewers = [gateways[1].client().session("c", Some(&turn.cursor)).await];
    // The gateway knows the turn that the worker holds, though nothing was said of it there.
    worker.say(turn.turn_id, 0, "at last").await;
    shown(&mut viewers, "at last", "behind a silence").await;
}

/// One connection of a worker opens and drops its stream all the time, another posts its output: nothing is refused but what is
/// missing, and least of all with a word that ends the program.
async fn output_is_taken_while_streams_come_and_go(db: Db) {
    let gateway = Gateway::start(&db).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let turn = gateway.client().submit("c", "m", "hello").await.turn_id;
    worker.turn().await;
    let mut restless = FakeWorker::new(&db.store, |_| {}).await;
    (restless.credential, restless.incarnation) = (worker.credential.clone(), worker.incarnation);
    restless.gateway.clone_from(&worker.gateway);
    worker.drop_stream();
    let opening = tokio::spawn(async move {
        loop {
            restless.try_connect(&[turn]).await.expect("may connect");
            restless.drop_stream();
        }
    });
    let mut said = Said::nothing(turn);
    for i in 0..300 {
        said.say(&worker, &format!("{i} ")).await;
    }
    opening.abort();
    worker.end(turn, said.text.len() as u64).await.expect("accepted");
    let (shown, _) = gateway.client().turn_stream(turn, None).await.rest().await;
    assert_eq!(text(&shown), said.text);
}

/// A viewer's cursor claims more of a turn than there is, and another gateway follows the turn for it first.
async fn an_offset_beyond_the_log_holds_up_nobody_else(db: Db) {
    let gateways = [Gateway::start(&db).await, Gateway::start(&db).await];
    let mut worker = FakeWorker::on(&db.store, &gateways[0]).await;
    let turn = gateways[0].client().submit("c", "m", "hello").await;
    worker.turn().await;
    let client = gateways[1].client();
    let mut said = Said::nothing(turn.turn_id);
    said.say(&worker, "first. ").await;
    let mut claims = client.session("c", Some(&format!("{}.1-900000000-0", turn.cursor))).await;
    // Until it is followed for the one who claims, or would have been.
    assert!(claims.next_within(Duration::from_secs(1)).await.is_none());
    let mut viewers = [client.session("c", Some(&turn.cursor)).await];
    shown(&mut viewers, "first. ", "what was there").await;
    for i in 0..5 {
        let more = format!("{i}. ");
        said.say(&worker, &more).await;
        shown(&mut viewers, &more, &more).await;
    }
    worker.end(turn.turn_id, said.text.len() as u64).await.expect("accepted");
    // What lies beyond the end counts as the end.
    assert_eq!(claims.until("complete").await.len(), 1);
}
