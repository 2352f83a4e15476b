//! The connection to one gateway at a time: the stream of turns and the heartbeats beside it.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::client::{CallError, Client};
use super::lines::Lines;
use crate::turn::keys::TurnId;
use crate::wire::{Connect, HeartbeatAnswer, Hello, ToWorker};

/// A gateway that accepts the stream but does not say hello within this is not used.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that held this long was a good one: its end starts the backoff anew.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);

/// Where calls go now. Each connection is another generation: what was sent on an older one may be lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub generation: u64,
    pub gateway: Option<Url>,
}

/// What comes from the gateway.
#[derive(Debug)]
pub(super) enum Event {
    Line(Box<ToWorker>),
    Answer(HeartbeatAnswer),
    /// This incarnation is dead to Lastword.
    Dead(CallError),
}

/// Keeps a connection, to one after the other of the gateways.
pub(super) struct Connection {
    pub client: Client,
    /// Never empty.
    pub gateways: Vec<Url>,
    pub terms: Connect,
    pub in_hand: watch::Receiver<Vec<TurnId>>,
    pub link: watch::Sender<Link>,
    pub events: mpsc::Sender<Event>,
}

impl Connection {
    /// Runs until the incarnation is dead, or nobody listens.
    pub(super) async fn run(self) {
        let mut pause = Backoff::default();
        for gateway in self.gateways.iter().cycle() {
            let begin = Instant::now();
            let end = self.one(gateway).await;
            self.link.send_modify(|link| link.gateway = None);
            match end {
                Ok(why) => tracing::info!(%gateway, "turns stream ended: {why}"),
                Err(error) if error.is_fatal() => {
                    let _ = self.events.send(Event::Dead(error)).await;
                    return;
                }
                Err(error) => tracing::warn!(%gateway, "no turns stream: {error}"),
            }
            if self.events.is_closed() {
                return;
            }
            if begin.elapsed() > GOOD_CONNECTION {
                pause = Backoff::default();
            }
            sleep(pause.next()).await;
        }
    }

    /// One connection from its beginning to its end. An error before the hello is an error; later it is an end.
    async fn one(&self, gateway: &Url) -> Result<String, CallError> {
        let turns = self.in_hand.borrow().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut lines = self.client.turns(gateway, &Connect { turns, ..self.terms.clone() }).await?;
        let hello = match timeout(HELLO_TIMEOUT, next(&mut lines)).await {
            Ok(Ok(Some(ToWorker::Hello(hello)))) => hello,
            Ok(Ok(_)) => return Err(CallError::Unavailable("the first line was no hello".into())),
            Ok(Err(why)) => return Err(CallError::Unavailable(why)),
            Err(_) => return Err(CallError::Unavailable("no hello in time".into())),
        };
        tracing::info!(%gateway, lease_seconds = hello.lease_seconds, "connected");
        self.link.send_modify(|link| {
            link.generation += 1;
            link.gateway = Some(gateway.clone());
        });
        let pulse = self.pulse(gateway, &hello);
        tokio::pin!(pulse);
        loop {
            tokio::select! {
                end = &mut pulse => return end,
                line = next(&mut lines) => match line {
                    Ok(Some(line)) => {
                        if self.events.send(Event::Line(Box::new(line))).await.is_err() {
                            return Ok("the worker ends".into());
                        }
                    }
                    Ok(None) => return Ok("closed by the gateway".into()),
                    Err(why) => return Ok(why),
                },
            }
        }
    }

    /// Heartbeats on time; ends when none was acknowledged for half a lease.
    async fn pulse(&self, gateway: &Url, hello: &Hello) -> Result<String, CallError> {
        let period = Duration::from_secs(u64::from(hello.heartbeat_seconds.max(1)));
        let patience = Duration::from_secs(u64::from(hello.lease_seconds.max(2))) / 2;
        let mut acknowledged = Instant::now();
        let mut due = acknowledged + period;
        loop {
            tokio::time::sleep_until(due).await;
            let begin = Instant::now();
            let left = patience.saturating_sub(acknowledged.elapsed());
            let turns = self.in_hand.borrow().clone();
            match self.client.heartbeat(gateway, turns, left.max(Duration::from_millis(100))).await {
                Ok(answer) => {
                    acknowledged = begin;
                    due = begin + period;
                    let _ = self.events.send(Event::Answer(answer)).await;
                }
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::warn!(%gateway, "heartbeat not acknowledged: {error}");
                    // Sooner than the next one, so that a short outage costs no gateway change.
                    due = Instant::now() + (period / 4).min(Duration::from_secs(2));
                    if acknowledged.elapsed() >= patience {
                        return Ok("no heartbeat was acknowledged for half a lease".into());
                    }
                }
            }
        }
    }
}

/// The next line that is understood. A line of a later version is skipped.
async fn next(lines: &mut Lines) -> Result<Option<ToWorker>, String> {
    loop {
        let Some(line) = lines.next().await.map_err(|e| e.to_string())? else { return Ok(None) };
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(line) => return Ok(Some(line)),
            Err(error) => tracing::warn!("a line of the turns stream is not understood: {error}"),
        }
    }
}

/// Pauses that double, with jitter so that the workers of a dead gateway don't come back all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let longest = LONGEST_PAUSE.min(Duration::from_millis(100) * 2u32.saturating_pow(self.failures.min(10)));
        self.failures += 1;
        longest.mul_f64(rand::random_range(0.5..1.0))
    }
}
