//! How a worker says that it leaves: `draining`, with the turns that it hands back, repeated until a gateway has answered; and
//! `gone` at the very end.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::client::CallError;
use super::gateways::Gateways;
use super::link::{ConnectedClient, pauses};
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::wire::{Goodbye, GoodbyePhase};

/// How long a worker without turns tries to say goodbye. If no gateway hears it, Lastword learns of the worker's end when its
/// lease runs out.
const PATIENCE: Duration = Duration::from_secs(3);

type Call = AbortOnDropHandle<Result<(), CallError>>;

/// The goodbye with phase `draining`: said once, and again when a turn arrives afterwards, to hand that one back.
pub(super) struct Farewell {
    client: ConnectedClient,
    begun: Instant,
    /// A gateway has heard that the worker drains.
    announced: bool,
    /// Turns to hand back of which no gateway has heard yet.
    unsaid: BTreeSet<TurnId>,
    /// Why the worker leaves, if a signal told it to.
    reason: Option<Reason>,
    /// The goodbye that is on its way, and the turns that it hands back.
    call: Option<(BTreeSet<TurnId>, Call)>,
}

impl Farewell {
    pub(super) fn new(client: ConnectedClient, reason: Option<Reason>) -> Self {
        Farewell { client, begun: Instant::now(), announced: false, unsaid: BTreeSet::new(), reason, call: None }
    }

    /// Hands back a turn that was never given to the agent program.
    pub(super) fn hand_back(&mut self, turn: TurnId) {
        self.unsaid.insert(turn);
    }

    /// The turns to hand back of which no gateway has heard yet.
    pub(super) fn unsaid(&self) -> impl Iterator<Item = TurnId> {
        self.unsaid.iter().copied()
    }

    /// Whether a gateway has heard all there is to say.
    pub(super) fn is_said(&self) -> bool {
        self.announced && self.unsaid.is_empty()
    }

    /// Until when a worker without turns waits for a gateway to hear its goodbye.
    pub(super) fn patience(&self) -> Instant {
        self.begun + PATIENCE
    }

    /// Returns when a gateway has heard a goodbye; never, if there is none to say.
    async fn say(&mut self) -> Result<(), CallError> {
        if self.call.is_none() {
            if self.is_said() {
                return std::future::pending().await;
            }
            let turns = self.unsaid.clone();
            let goodbye = Goodbye {
                phase: GoodbyePhase::Draining,
                hand_back: turns.iter().copied().collect(),
                reason: self.reason,
            };
            let task = tokio::spawn(say(self.client.clone(), goodbye));
            self.call = Some((turns, AbortOnDropHandle::new(task)));
        }
        let Some((_, task)) = &mut self.call else { return Ok(()) };
        let result = task.await.unwrap_or(Ok(()));
        if let Some((turns, _)) = self.call.take() {
            self.announced = true;
            self.unsaid.retain(|turn| !turns.contains(turn));
        }
        result
    }
}

/// Returns each time that a gateway has heard a goodbye; never, if there is none to say. Cancel-safe: a goodbye on its way
/// goes on.
pub(super) async fn said(farewell: Option<&mut Farewell>) -> Result<(), CallError> {
    match farewell {
        Some(farewell) => farewell.say().await,
        None => std::future::pending().await,
    }
}

/// Repeats a goodbye until a gateway has answered it.
async fn say(client: ConnectedClient, goodbye: Goodbye) -> Result<(), CallError> {
    let mut link = client.link.clone();
    let mut pauses = pauses();
    loop {
        let Ok(gateway) = link.wait_for(|link| link.gateway.is_some()).await.map(|link| link.gateway.clone()) else {
            return Ok(());
        };
        let Some(gateway) = gateway else { continue };
        match client.calls.goodbye(&gateway, &goodbye).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_fatal() => return Err(error),
            Err(CallError::Unavailable(why)) => tracing::warn!("goodbye was not heard: {why}"),
            Err(error) => {
                tracing::error!("goodbye: {error}");
                return Ok(());
            }
        }
        sleep(pauses.next()).await;
    }
}

/// Says that the worker ends now: tries one gateway after the other until one has heard it, for [`PATIENCE`] at most.
pub(super) async fn gone(client: &ConnectedClient, gateways: &Gateways) {
    let link = client.link.borrow().clone();
    if link.generation == 0 {
        return; // The worker was never connected, so it has no lease to end.
    }
    let goodbye = Goodbye { phase: GoodbyePhase::Gone, hand_back: Vec::new(), reason: None };
    let attempts = async {
        let (mut pauses, mut tries, mut next) = (pauses(), gateways.tries(), link.gateway);
        loop {
            if let Some(gateway) = next {
                match client.calls.goodbye(&gateway, &goodbye).await {
                    Err(CallError::Unavailable(why)) => tracing::warn!("goodbye was not heard: {why}"),
                    Err(error) => return tracing::warn!("goodbye: {error}"),
                    Ok(()) => return,
                }
            }
            sleep(pauses.next()).await;
            next = tries.next_of_any_round().await;
        }
    };
    if timeout(PATIENCE, attempts).await.is_err() {
        tracing::warn!("no gateway heard the goodbye; the lease will tell");
    }
}
