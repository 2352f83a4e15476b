//! How a worker leaves: `draining` until the gateway has heard it, with the turns that it hands back; then `gone`.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::client::CallError;
use super::job::Reporter;
use super::link::Backoff;
use crate::turn::keys::TurnId;
use crate::turn::reason::Reason;
use crate::wire::{Goodbye, GoodbyePhase};

/// How long a worker with nothing in hand tries to tell that it goes. Its lease tells it else.
const PATIENCE: Duration = Duration::from_secs(3);

type Call = AbortOnDropHandle<Result<(), CallError>>;

/// The `draining` goodbye, said once and again for each turn that arrives afterwards.
pub(super) struct Farewell {
    reporter: Reporter,
    begun: Instant,
    announced: bool,
    unsaid: BTreeSet<TurnId>,
    /// Why it goes, when it was told to by a signal.
    reason: Option<Reason>,
    /// On its way, with the turns that it hands back.
    call: Option<(BTreeSet<TurnId>, Call)>,
}

impl Farewell {
    pub(super) fn new(reporter: Reporter, reason: Option<Reason>) -> Self {
        Farewell { reporter, begun: Instant::now(), announced: false, unsaid: BTreeSet::new(), reason, call: None }
    }

    /// A turn that was never given to the agent program.
    pub(super) fn hand_back(&mut self, turn: TurnId) {
        self.unsaid.insert(turn);
    }

    /// Handed back, but the gateway has not heard it yet.
    pub(super) fn unsaid(&self) -> impl Iterator<Item = TurnId> {
        self.unsaid.iter().copied()
    }

    pub(super) fn is_said(&self) -> bool {
        self.announced && self.unsaid.is_empty()
    }

    /// Until when an idle worker waits for the goodbye to be heard.
    pub(super) fn patience(&self) -> Instant {
        self.begun + PATIENCE
    }

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
            let task = tokio::spawn(say(self.reporter.clone(), goodbye));
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

/// Ends each time a goodbye was heard; never when there is none to say. Cancel-safe.
pub(super) async fn said(farewell: Option<&mut Farewell>) -> Result<(), CallError> {
    match farewell {
        Some(farewell) => farewell.say().await,
        None => std::future::pending().await,
    }
}

async fn say(reporter: Reporter, goodbye: Goodbye) -> Result<(), CallError> {
    let mut link = reporter.link.clone();
    let mut pause = Backoff::default();
    loop {
        let Ok(gateway) = link.wait_for(|link| link.gateway.is_some()).await.map(|link| link.gateway.clone()) else {
            return Ok(());
        };
        let Some(gateway) = gateway else { continue };
        match reporter.client.goodbye(&gateway, &goodbye).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_fatal() => return Err(error),
            Err(CallError::Unavailable(why)) => tracing::warn!("goodbye was not heard: {why}"),
            Err(error) => {
                tracing::error!("goodbye: {error}");
                return Ok(());
            }
        }
        sleep(pause.next()).await;
    }
}

/// Says that the worker ends now, for a few seconds at most, to whichever gateway hears it.
pub(super) async fn gone(reporter: &Reporter, gateways: &[Url]) {
    let link = reporter.link.borrow().clone();
    if link.generation == 0 {
        return; // Never live: there is no lease of ours to end.
    }
    let goodbye = Goodbye { phase: GoodbyePhase::Gone, hand_back: Vec::new(), reason: None };
    let attempts = async {
        let mut pause = Backoff::default();
        for gateway in link.gateway.iter().chain(gateways.iter().cycle()) {
            match reporter.client.goodbye(gateway, &goodbye).await {
                Err(CallError::Unavailable(why)) => tracing::warn!("goodbye was not heard: {why}"),
                Err(error) => return tracing::warn!("goodbye: {error}"),
                Ok(()) => return,
            }
            sleep(pause.next()).await;
        }
    };
    if timeout(PATIENCE, attempts).await.is_err() {
        tracing::warn!("no gateway heard the goodbye; the lease will tell");
    }
}
