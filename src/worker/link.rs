//! The connection to one gateway at a time: the turns stream, and the heartbeats beside it. When it breaks, or no heartbeat is
//! acknowledged for half a lease, the next gateway is tried.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{CallError, ProtocolClient};
use super::gateways::{GatewayRoute, Gateways, Tries};
use super::http::StreamLines;
use crate::backoff::Backoff;
use crate::every::supervised;
use crate::turn::keys::TurnId;
use crate::wire::{Connect, HeartbeatAnswer, Hello, ToWorker};

/// How long a gateway may take to answer that it opens the stream, and then to say hello; after that, the next one is tried.
/// While the worker knows its lease it begins with less, see [`TryPatience`].
const LONGEST_TRY: Duration = Duration::from_secs(15);
const SHORTEST_TRY: Duration = Duration::from_secs(1);
/// The first and the longest pause between two attempts of a call, or of a connection.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After a connection that lasted at least this long, the pauses begin with the first one again.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);

/// The pauses between attempts to reach a gateway.
pub(super) fn pauses() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Where calls go at present.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    /// Counts the connections. What was sent on an earlier connection may be lost, unless it was acknowledged as durable.
    pub generation: u64,
    /// `None` while there is no connection.
    pub gateway: Option<GatewayRoute>,
}

/// Makes calls to whichever gateway the worker is connected to.
#[derive(Clone)]
pub(super) struct ConnectedClient {
    pub calls: ProtocolClient,
    pub link: watch::Receiver<Link>,
}

/// What the gateway tells the worker.
#[derive(Debug)]
pub(super) enum FromGateway {
    /// A line of the turns stream.
    Line(Box<ToWorker>),
    /// The answer to a heartbeat.
    Answer(HeartbeatAnswer),
    /// The gateway has ended this incarnation: see [`CallError::is_fatal`].
    Dead(CallError),
}

/// Keeps the worker connected.
pub(super) struct Connection {
    pub calls: ProtocolClient,
    /// Tried one after the other, over and over.
    pub gateways: Gateways,
    /// What each connection asks for; its `turns` are filled in from `in_hand`.
    pub terms: Connect,
    /// The turns that the worker holds, for reconnects and heartbeats.
    pub in_hand: watch::Receiver<Vec<TurnId>>,
    /// Told where calls go.
    pub link: watch::Sender<Link>,
    pub events: mpsc::Sender<FromGateway>,
}

impl Connection {
    /// Runs in a task of its own until the gateway ends the incarnation, or nobody takes the events any more.
    pub(super) fn spawn(self) -> JoinHandle<()> {
        supervised("the connection to the gateway", self.run())
    }

    async fn run(self) {
        let (mut pauses, mut tries, mut patience) = (pauses(), self.gateways.tries(), TryPatience::default());
        loop {
            let Some(gateway) = next_of(&mut tries, &mut patience, &mut pauses).await else { continue };
            let begin = Instant::now();
            let mut connected = None;
            let end = self.one(&gateway, patience.now(), &mut connected).await;
            self.link.send_modify(|link| link.gateway = None);
            let url = &gateway.url;
            match end {
                Ok(why) => tracing::info!(gateway = %url, "turns stream ended: {why}"),
                Err(error) if error.is_fatal() => {
                    let _ = self.events.send(FromGateway::Dead(error)).await;
                    return;
                }
                Err(error) => tracing::warn!(gateway = %url, "no turns stream: {error}"),
            }
            if self.events.is_closed() {
                return;
            }
            // A gateway that was not reached, or that does not reach the database, is followed by the next one at once. When
            // many workers leave one that they were connected to, they do not all come to another in the same moment.
            if let Some((lease_seconds, left)) = connected {
                patience = TryPatience::of(lease_seconds);
                tries.leave(&left);
                if begin.elapsed() > GOOD_CONNECTION {
                    pauses.reset();
                }
                sleep(pauses.next()).await;
            }
        }
    }

    /// One connection from its beginning to its end. `Ok` says why it ended; an error means that it never came to be, or that
    /// the gateway has ended the incarnation. Once there is a hello, for which, and for the answer before it, the gateway has as
    /// long as `patience`, `connected` is set to the lease's length in seconds, and to the way that calls take.
    async fn one(
        &self,
        gateway: &GatewayRoute,
        patience: Duration,
        connected: &mut Option<(u32, GatewayRoute)>,
    ) -> Result<String, CallError> {
        let turns = self.in_hand.borrow().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let connect = Connect { turns, ..self.terms.clone() };
        let mut lines = self.calls.turns(gateway, &connect, patience).await?;
        let hello = match timeout(patience, next(&mut lines)).await {
            Ok(Ok(Some(ToWorker::Hello(hello)))) => hello,
            Ok(Ok(_)) => return Err(CallError::Unavailable("the first line was no hello".into())),
            Ok(Err(why)) => return Err(CallError::Unavailable(why)),
            Err(_) => return Err(CallError::Unavailable("no hello in time".into())),
        };
        let direct = match &hello.address {
            Some(address) => self.gateways.direct(gateway, address).await,
            None => None,
        };
        let gateway = direct.as_ref().unwrap_or(gateway);
        *connected = Some((hello.lease_seconds, gateway.clone()));
        tracing::info!(gateway = %gateway.url, lease_seconds = hello.lease_seconds, "connected");
        self.link.send_modify(|link| {
            link.generation += 1;
            link.gateway = Some(gateway.clone());
        });
        let heartbeats = self.heartbeats(gateway, &hello);
        tokio::pin!(heartbeats);
        loop {
            tokio::select! {
                end = &mut heartbeats => return end,
                line = next(&mut lines) => match line {
                    Ok(Some(line)) => {
                        if self.events.send(FromGateway::Line(Box::new(line))).await.is_err() {
                            return Ok("the worker ends".into());
                        }
                    }
                    Ok(None) => return Ok("closed by the gateway".into()),
                    Err(why) => return Ok(why),
                },
            }
        }
    }

    /// Sends heartbeats. Returns when none was acknowledged for half a lease: the other half is left for another gateway.
    async fn heartbeats(&self, gateway: &GatewayRoute, hello: &Hello) -> Result<String, CallError> {
        let period = Duration::from_secs(u64::from(hello.heartbeat_seconds.max(1)));
        let patience = Duration::from_secs(u64::from(hello.lease_seconds.max(2))) / 2;
        let mut acknowledged = Instant::now();
        let mut due = acknowledged + period;
        loop {
            tokio::time::sleep_until(due).await;
            let begin = Instant::now();
            let left = patience.saturating_sub(acknowledged.elapsed());
            let turns = self.in_hand.borrow().clone();
            match self.calls.heartbeat(gateway, turns, left.max(Duration::from_millis(100))).await {
                Ok(answer) => {
                    acknowledged = begin;
                    due = begin + period;
                    let _ = self.events.send(FromGateway::Answer(answer)).await;
                }
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::warn!(gateway = %gateway.url, "heartbeat not acknowledged: {error}");
                    // Again sooner than the period says, so that a short outage does not end the connection.
                    due = Instant::now() + (period / 4).min(Duration::from_secs(2));
                    if acknowledged.elapsed() >= patience {
                        return Ok("no heartbeat was acknowledged for half a lease".into());
                    }
                }
            }
        }
    }
}

/// How long a try may take. A worker that has left a gateway has half a lease to find another one, among some that may be
/// silent; so a try begins with an eighth of the lease. Where everybody is slow, every round of tries doubles that.
#[derive(Debug, Clone, Copy)]
struct TryPatience(Duration);

impl Default for TryPatience {
    fn default() -> Self {
        TryPatience(LONGEST_TRY)
    }
}

impl TryPatience {
    fn of(lease_seconds: u32) -> Self {
        TryPatience(Duration::from_secs(lease_seconds.into()) / 8)
    }

    fn now(self) -> Duration {
        self.0.clamp(SHORTEST_TRY, LONGEST_TRY)
    }

    fn grow(&mut self) {
        self.0 = self.now() * 2;
    }
}

/// The next gateway to try. `None` when all have been tried, after a pause.
async fn next_of(tries: &mut Tries, patience: &mut TryPatience, pauses: &mut Backoff) -> Option<GatewayRoute> {
    let next = tries.next().await;
    if next.is_none() {
        patience.grow();
        sleep(pauses.next()).await;
    }
    next
}

/// The next line of a known kind; `None` at the end of the stream. Lines that a later version may have added are skipped.
async fn next(lines: &mut StreamLines) -> Result<Option<ToWorker>, String> {
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
