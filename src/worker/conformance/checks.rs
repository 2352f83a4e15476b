//! The checks, in the order in which they are made.

use std::time::Duration;

use super::bench::{Bench, ConformanceArgs};
use super::report::CheckReport;
use super::state::{FinishFault, GatewayState, RecordedTurn};
use crate::turn::keys::TurnId;
use crate::turn::terminal::Outcome;
use crate::wire::GoodbyePhase;
use crate::worker::error::WorkerError;

/// The error says what was expected.
type CheckResult = Result<(), String>;

/// Makes all checks.
pub(super) async fn all(args: &ConformanceArgs, report: &mut CheckReport) -> Result<(), WorkerError> {
    let bench = Bench::start(args, |_| {}).await?;
    if report.tell("connects with its credential and an incarnation", connects(&bench).await) {
        on_one_worker(args, report, bench).await;
    } else {
        report.skip("all else", "the worker does not connect");
        return Ok(());
    }
    let bench = Bench::start(args, |state| state.unavailable_streams = 1).await?;
    report.tell("tries again when the gateway answers 503", retries(&bench).await);
    report.tell("exits when the lease is dead (410)", exits_when_gone(bench).await);
    let bench = Bench::start(args, |_| {}).await?;
    report.tell("on SIGTERM says draining, then gone, and exits 0", leaves_on_sigterm(bench).await);
    Ok(())
}

/// The checks that one worker process passes through, one after the other.
async fn on_one_worker(args: &ConformanceArgs, report: &mut CheckReport, bench: Bench) {
    report.tell("heartbeats on time", heartbeats(&bench).await);
    report.tell("runs a turn, with all output in order", runs(&bench, &args.message).await);
    report.tell("runs a turn once, however often it is pushed", runs_once(&bench, &args.message).await);
    for (name, fault) in [
        ("repeats a finish whose answer was lost, with the same replyId", FinishFault::NoAnswer),
        ("repeats a finish that was answered 503, with the same replyId", FinishFault::Unavailable),
        ("sends its output again when a finish is answered 409", FinishFault::Forgotten),
    ] {
        report.tell(name, repeats(&bench, &args.message, fault).await);
    }
    let slow = [
        "names a turn in hand after a dropped connection, and loses none of its output",
        "stops a cancelled turn",
        "drains: hands back what has not begun, finishes the rest, exits 0",
    ];
    if args.no_slow {
        slow.iter().for_each(|name| report.skip(name, "needs a slow message (--no-slow)"));
        return;
    }
    report.tell(slow[0], reconnects(&bench, &args.slow_message).await);
    report.tell(slow[1], cancels(&bench, &args.slow_message, &args.message).await);
    report.tell(slow[2], drains(bench, &args.slow_message, &args.message).await);
}

async fn connects(bench: &Bench) -> CheckResult {
    let what = "GET /worker/v1/turns with the credential and a UUID in lastword-incarnation";
    bench.expect(what, |state| (!state.connects.is_empty()).then_some(())).await.map_err(|expected| {
        let problems = bench.gateway.with(|state| state.problems.clone());
        format!("{expected} {problems:?}")
    })
}

async fn heartbeats(bench: &Bench) -> CheckResult {
    let times =
        |state: &GatewayState| (state.heartbeats.len() >= 3).then(|| state.heartbeats.iter().map(|h| h.0).collect());
    let times: Vec<_> = bench.expect("three heartbeats, one a second", times).await?;
    match times.windows(2).map(|pair| pair[1] - pair[0]).max() {
        Some(gap) if gap > Duration::from_millis(2500) => {
            Err(format!("expected a heartbeat each second (heartbeatSeconds is 1), saw none for {gap:?}"))
        }
        _ => fine(bench),
    }
}

/// Fails if a call so far broke the protocol.
fn fine(bench: &Bench) -> CheckResult {
    bench.gateway.with(|state| match state.problems.drain(..).next() {
        Some(problem) => Err(format!("seen: {problem}")),
        None if state.incarnations.len() > 1 => Err("expected one incarnation per process".into()),
        None => Ok(()),
    })
}

/// Waits until a turn has ended with a reply; returns what `look` makes of it.
async fn replied<T>(bench: &Bench, turn: TurnId, look: impl Fn(&RecordedTurn) -> T) -> Result<T, String> {
    let closed = |state: &GatewayState| {
        let log = state.turns.get(&turn)?;
        (log.closed && !log.finishes.is_empty()).then(|| (log.finishes[0].outcome.clone(), look(log)))
    };
    match bench.expect("a finish that is complete", closed).await? {
        (Outcome::Reply, looked) => Ok(looked),
        (Outcome::Error(failure), _) => Err(format!("expected a reply, got {}: {failure:?}", failure.reason)),
    }
}

async fn runs(bench: &Bench, message: &str) -> CheckResult {
    let turn = bench.gateway.push(message);
    let (text, gaps) = replied(bench, turn, |log| (log.text(), log.gaps)).await?;
    if text.is_empty() {
        return Err("expected text; choose a --message that the worker replies to".into());
    }
    if gaps > 0 {
        return Err(format!(
            "expected offsets without gaps, counted in bytes of UTF-8 for text and 1 for other frames; {gaps} gaps"
        ));
    }
    fine(bench)
}

async fn runs_once(bench: &Bench, message: &str) -> CheckResult {
    let turn = bench.gateway.push(message);
    bench.gateway.push_again(turn);
    let before = replied(bench, turn, |log| (log.posts, log.text(), log.finishes[0].end)).await?;
    bench.gateway.push_again(turn);
    // The worker has seen the repeat before it sees this next turn.
    let next = bench.gateway.push(message);
    replied(bench, next, |_| ()).await?;
    let after = replied(bench, turn, |log| (log.posts, log.text(), log.finishes[0].end)).await?;
    if before != after {
        return Err("expected a repeated push to be ignored; the turn ran again".into());
    }
    fine(bench)
}

async fn repeats(bench: &Bench, message: &str, fault: FinishFault) -> CheckResult {
    bench.gateway.with(|state| {
        state.finish_faults.push(fault);
        state.hold = fault == FinishFault::Forgotten;
    });
    let turn = bench.gateway.push(message);
    let twice = |state: &GatewayState| {
        let log = state.turns.get(&turn)?;
        (log.closed && log.finishes.len() > 1).then(|| (log.finishes.clone(), log.span.end()))
    };
    let seen = bench.expect("the finish again, until it is answered", twice).await;
    bench.gateway.with(|state| state.hold = false);
    let (finishes, end) = seen?;
    if finishes.iter().any(|finish| finish.reply_id != finishes[0].reply_id || finish.end != finishes[0].end) {
        return Err("expected the same replyId and end in each repetition".into());
    }
    if end != finishes[0].end {
        return Err(format!("expected the output up to {}, got {end}", finishes[0].end));
    }
    fine(bench)
}

/// Waits until a heartbeat names the turn.
async fn in_hand(bench: &Bench, turn: TurnId) -> CheckResult {
    let named = |state: &GatewayState| state.heartbeats.last().filter(|(_, turns)| turns.contains(&turn)).map(|_| ());
    bench.expect("a heartbeat that names the turn in hand; does the slow message last seconds?", named).await
}

async fn reconnects(bench: &Bench, slow: &str) -> CheckResult {
    bench.gateway.with(|state| state.hold = true);
    let turn = bench.gateway.push(slow);
    in_hand(bench, turn).await?;
    let connects = bench.gateway.with(|state| state.connects.len());
    bench.gateway.break_stream();
    bench.gateway.with(|state| state.hold = false);
    let again = |state: &GatewayState| state.connects.get(connects).map(|connect| connect.turns.clone());
    let named = bench.expect("a new connection", again).await?;
    if !named.contains(&turn.to_string()) {
        return Err(format!("expected the turn in hand in the query's `turns`, got {named:?}"));
    }
    let (end, received) = replied(bench, turn, |log| (log.finishes[0].end, log.span.end())).await?;
    if end != received {
        return Err(format!("expected the output up to {end}, got {received}"));
    }
    fine(bench)
}

async fn cancels(bench: &Bench, slow: &str, message: &str) -> CheckResult {
    let turn = bench.gateway.push(slow);
    in_hand(bench, turn).await?;
    bench.gateway.cancel(turn);
    let beats = bench.gateway.with(|state| state.heartbeats.len());
    let quiet = |state: &GatewayState| {
        let after = state.heartbeats.get(beats + 1..)?;
        after.iter().any(|(_, turns)| !turns.contains(&turn)).then_some(())
    };
    bench.expect("heartbeats that do not name the cancelled turn", quiet).await?;
    // The worker is free again. This turn lasts longer than what was left of the cancelled one, so a finish of that would have
    // come by the time both replies are there.
    let next = bench.gateway.push(slow);
    replied(bench, next, |_| ()).await?;
    let next = bench.gateway.push(message);
    replied(bench, next, |_| ()).await?;
    if bench.gateway.with(|state| state.turns.get(&turn).is_some_and(|log| !log.finishes.is_empty())) {
        return Err("expected no finish of a cancelled turn".into());
    }
    fine(bench)
}

/// Waits for a goodbye of this phase.
async fn goodbye(bench: &Bench, what: &str, phase: GoodbyePhase) -> CheckResult {
    let said = |state: &GatewayState| state.goodbyes.iter().find(|goodbye| goodbye.phase == phase).map(|_| ());
    bench.expect(what, said).await
}

async fn drains(bench: Bench, slow: &str, message: &str) -> CheckResult {
    let turn = bench.gateway.push(slow);
    in_hand(&bench, turn).await?;
    let late = bench.gateway.drain_and_push(20, message);
    goodbye(&bench, "goodbye {phase: draining}", GoodbyePhase::Draining).await?;
    let back = |state: &GatewayState| state.turns.get(&late).filter(|log| log.handed_back).map(|_| ());
    bench.expect("a goodbye whose handBack names the turn that came with the drain", back).await?;
    replied(&bench, turn, |_| ()).await?;
    goodbye(&bench, "goodbye {phase: gone} after the last turn", GoodbyePhase::Gone).await?;
    fine(&bench)?;
    exits_zero(bench).await
}

async fn exits_zero(bench: Bench) -> CheckResult {
    match bench.exit().await? {
        Some(0) => Ok(()),
        code => Err(format!("expected exit code 0, got {code:?}")),
    }
}

async fn retries(bench: &Bench) -> CheckResult {
    let connected = |state: &GatewayState| (state.refused_streams > 0 && !state.connects.is_empty()).then_some(());
    bench.expect("another GET /worker/v1/turns after a 503", connected).await
}

async fn exits_when_gone(bench: Bench) -> CheckResult {
    bench.gateway.with(|state| state.gone = true);
    bench.exit().await.map(drop)
}

async fn leaves_on_sigterm(bench: Bench) -> CheckResult {
    connects(&bench).await?;
    bench.expect("a heartbeat", |state| state.heartbeats.first().map(|_| ())).await?;
    bench.sigterm();
    goodbye(&bench, "goodbye {phase: draining}", GoodbyePhase::Draining).await?;
    goodbye(&bench, "goodbye {phase: gone}", GoodbyePhase::Gone).await?;
    exits_zero(bench).await
}
