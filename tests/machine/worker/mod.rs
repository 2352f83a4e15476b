//! The promise: whatever an agent program does, its worker says exactly one last word, and says it right. Real
//! processes and real HTTP, against the gateway of `lastword worker conformance`.

use std::process::{Output, Stdio};

use lastword::turn::frame::Frame;
use lastword::turn::keys::TurnId;
use lastword::turn::terminal::{Failure, Outcome};
use lastword::worker::conformance::{FakeGateway, GatewayState, RecordedTurn};
use tokio::process::{Child, Command};

use crate::support::LASTWORD;
use crate::support::wait::{BOUND, within};

mod agui;
mod exec;
mod keeper;
mod openai;
mod protocol;

const SECRET: &str = "lww_a-secret";

/// A worker and its gateway.
struct Bench {
    gateway: FakeGateway,
    worker: Child,
}

impl Bench {
    async fn start(args: &[&str]) -> Bench {
        Bench::with(args, |_| {}).await
    }

    async fn with(args: &[&str], prepare: impl FnOnce(&mut GatewayState)) -> Bench {
        Bench::launch(&[&[LASTWORD, "worker"], args].concat(), prepare).await
    }

    async fn launch(command: &[&str], prepare: impl FnOnce(&mut GatewayState)) -> Bench {
        let gateway = FakeGateway::start(SECRET.into(), 8).await.unwrap();
        gateway.with(prepare);
        let worker = Command::new(command[0])
            .args(&command[1..])
            .env("LASTWORD_WORKER_GATEWAY", gateway.url().as_str())
            .env("LASTWORD_CREDENTIAL", SECRET)
            .env("LASTWORD_LOG", "warn")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Bench { gateway, worker }
    }

    /// Runs one turn; its log and its last word.
    async fn turn(&self, message: &str) -> (Vec<Frame>, Outcome) {
        let turn = self.gateway.push(message);
        self.over(turn).await
    }

    async fn over(&self, turn: TurnId) -> (Vec<Frame>, Outcome) {
        self.see(turn, |log| {
            let finish = log.finishes.last().filter(|_| log.closed)?;
            assert_eq!(finish.end, log.span.end());
            Some((log.span.frames.clone(), finish.outcome.clone()))
        })
        .await
    }

    async fn see<T>(&self, turn: TurnId, look: impl Fn(&RecordedTurn) -> Option<T>) -> T {
        let seen = self.gateway.wait(BOUND, |state| look(state.turns.get(&turn)?)).await;
        let problems = self.gateway.with(|state| state.problems.clone());
        assert_eq!(problems, Vec::<String>::new());
        seen.unwrap_or_else(|| {
            let what = self.gateway.with(|state| {
                let log = &state.turns[&turn];
                format!("posts {} end {} acked {} closed {}", log.posts, log.span.end(), log.acked, log.closed)
            });
            panic!("not in time: {what}")
        })
    }

    async fn exit_code(&mut self) -> Option<i32> {
        within("the worker exits", self.worker.wait()).await.unwrap().code()
    }
}

fn text(frames: &[Frame]) -> String {
    lastword::turn::frame::Span::new(0, frames.to_vec()).text()
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Error(failure) => failure,
        Outcome::Reply => panic!("a reply"),
    }
}

async fn conformance(worker: &[&str]) -> Output {
    let mut command = Command::new(LASTWORD);
    command.args(["worker", "conformance", "--timeout", "20", "--"]).args(worker);
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}
