//! Submit: arm, then guard; for gateway and AgentTurns alike.
//!
//! With guardrails a turn is armed as `guarding` under a short lease of this replica. The check runs apart from the
//! request that submitted the turn: it ends with the turn claimable, or with its terminal; if this replica dies in
//! between, the lease runs out and another one guards the turn ([`Submitter::reguard`]). A rejection that the database refuses to
//! write is tried again until it is written: it never falls open to dispatch.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::agents::{Agent, Agents};
use crate::guard::{self, Verdict};
use crate::store::{AgentTurnRef, Arm, ArmError, Armed, GuardedTurn, Store, StoreError};
use crate::turn::cursor::MAX_OPEN_TURNS;
use crate::turn::keys::{GatewayId, TurnId, content_hash, worker_group};
use crate::turn::reason::Reason;
use crate::turn::routing::{API, KUBERNETES, Routing};
use crate::turn::terminal::Failure;

/// A guard's lease on a turn; kept up while the check runs.
const GUARD_SECONDS: u32 = 10;
/// Pause between looks for turns whose guard is gone.
const REGUARD_EVERY: Duration = Duration::from_secs(2);
/// The pause after the database refused a guard's verdict.
const RETRY: Duration = Duration::from_millis(500);

/// A turn to submit; names are checked already.
#[derive(Debug, Clone)]
pub struct Submission {
    pub organization: String,
    pub user: String,
    pub agent: String,
    pub conversation: String,
    pub message_id: String,
    pub message: String,
    pub platform: String,
    pub platform_metadata: Value,
    pub traceparent: Option<String>,
    /// The hard deadline from arming; absent: the Agent's.
    pub deadline_seconds: Option<u32>,
    /// The AgentTurn that asks; what makes the platform `kubernetes` allowed.
    pub object: Option<AgentTurnRef>,
}

impl Submission {
    /// Whether its platform is one that anybody may name, the AgentTurn's own, or one of the Agent's.
    fn may_be_shown(&self, agent: &Agent) -> bool {
        match self.platform.as_str() {
            API => true,
            KUBERNETES => self.object.is_some(),
            other => agent.spec.platforms.iter().any(|p| p.name == other),
        }
    }
}

/// Why a submission did not become a turn.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    #[error("no such agent")]
    NoAgent,
    #[error("the agent has no platform of this name")]
    NoPlatform,
    #[error("the agent's queue is full ({0} turns wait); try again later")]
    QueueFull(u32),
    #[error("the conversation has {MAX_OPEN_TURNS} open turns; wait for some to end")]
    TooManyOpen,
    #[error(transparent)]
    Refused(ArmError),
    /// Not known to be armed: submit again with the same message id.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ArmError> for SubmitError {
    fn from(error: ArmError) -> Self {
        match error {
            ArmError::Store(error) => SubmitError::Store(error),
            refused => SubmitError::Refused(refused),
        }
    }
}

/// Arms turns and guards them.
#[derive(Clone)]
pub struct Submitter {
    pub store: Store,
    pub agents: Agents,
    pub gateway: GatewayId,
    /// What guardrails may ask.
    pub services: guard::Services,
}

impl Submitter {
    /// Arms a turn (or finds the one that the same message id armed) and has it guarded.
    pub async fn submit(&self, submission: Submission) -> Result<(Armed, String), SubmitError> {
        let found = self.agents.find(&self.store, &submission.organization, &submission.agent).await?;
        let agent = found.ok_or(SubmitError::NoAgent)?;
        if !submission.may_be_shown(&agent) {
            return Err(SubmitError::NoPlatform);
        }
        self.check_room(&submission, &agent).await?;
        let worker_group = worker_group(&submission.agent, agent.grouping(), &submission.conversation);
        let arm = arm(&submission, &agent, worker_group.clone(), self.gateway);
        let guarded = arm.guard.is_some().then(|| guarded(&arm));
        let armed = self.store.arm(arm).await?;
        if let (Some(turn), true) = (guarded, armed.fresh) {
            tokio::spawn(self.clone().guard(turn, agent));
        }
        Ok((armed, worker_group))
    }

    /// Limits that are known before arming; a repeat of an armed message id passes them, since it arms nothing.
    async fn check_room(&self, submission: &Submission, agent: &Agent) -> Result<(), SubmitError> {
        let Submission { organization, conversation, .. } = submission;
        let max = agent.spec.limits.max_queued_turns();
        let before = self.store.backlog_before_turn(organization, &submission.agent, conversation, max).await?;
        if before.queued < max && before.open < MAX_OPEN_TURNS as u64 {
            return Ok(());
        }
        if self.store.knows_message(organization, conversation, &submission.message_id).await? {
            return Ok(());
        }
        Err(if before.queued >= max { SubmitError::QueueFull(max) } else { SubmitError::TooManyOpen })
    }

    /// Checks a turn and writes what came of it, however often the database refuses.
    async fn guard(self, turn: GuardedTurn, agent: Arc<Agent>) {
        let turn_id = turn.turn_id.to_string();
        let judging = async {
            let verdict = agent.guards.check(&self.services, input(&turn, &turn_id)).await;
            self.write_verdict(&turn, &verdict).await;
        };
        // Kept until the verdict is written, else another replica could pass what this one rejects.
        tokio::select! {
            () = judging => {}
            // Another replica guards it now; its verdict counts.
            () = self.keep(turn.turn_id) => {}
        }
    }

    async fn write_verdict(&self, turn: &GuardedTurn, verdict: &Verdict) {
        loop {
            match self.try_verdict(turn, verdict).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(turn = %turn.turn_id, %error, "the guard's verdict on turn {} waits for the database", turn.turn_id);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_verdict(&self, turn: &GuardedTurn, verdict: &Verdict) -> Result<(), StoreError> {
        match verdict {
            Verdict::Allow => self.store.pass_guarded_turn(turn.turn_id, self.gateway).await.map(drop),
            Verdict::Reject { message, detail } => {
                let failure =
                    Failure::detailed(Reason::GuardrailRejected, detail.clone()).with_message(message.clone());
                // A rejection is no word on a turn that another replica let pass.
                self.store.reject_guarded_turn(turn.turn_id, self.gateway, &failure).await.map(drop)
            }
        }
    }

    /// Keeps the guard's lease; returns when it was lost.
    async fn keep(&self, turn: TurnId) {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(GUARD_SECONDS) / 3)).await;
            if let Ok(false) = self.store.keep_guarding_turn(turn, self.gateway, GUARD_SECONDS).await {
                return;
            }
        }
    }

    /// Guards the turns whose guards are gone, until `shutdown`.
    pub async fn reguard(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REGUARD_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            // Without the database nothing is dispatched either.
            let Ok(turns) = self.store.take_unguarded_turns(self.gateway, GUARD_SECONDS).await else { continue };
            for turn in turns {
                match self.agents.find(&self.store, &turn.organization, &turn.agent).await {
                    Ok(Some(agent)) => drop(tokio::spawn(self.clone().guard(turn, agent))),
                    Err(error) => tracing::debug!(%error, "the lease of turn {} runs out again", turn.turn_id),
                    Ok(None) => {
                        let failure = Failure::new(Reason::AgentNotFound);
                        if let Err(error) = self.store.fail_turn(turn.turn_id, &failure).await {
                            tracing::debug!(%error, "its lease runs out again");
                        }
                    }
                }
            }
        }
    }
}

fn arm(submission: &Submission, agent: &Agent, worker_group: String, gateway: GatewayId) -> Arm {
    let routing = Routing::on(&submission.platform, submission.platform_metadata.clone());
    let hash = content_hash(
        &submission.agent,
        &submission.user,
        &submission.platform,
        &submission.message,
        &submission.platform_metadata,
    );
    Arm {
        turn_id: TurnId::new(),
        organization: submission.organization.clone(),
        conversation: submission.conversation.clone(),
        message_id: submission.message_id.clone(),
        agent: submission.agent.clone(),
        worker_group,
        user: submission.user.clone(),
        routing: serde_json::to_value(&routing).unwrap_or(Value::Null),
        input: submission.message.clone(),
        content_hash: hash,
        traceparent: submission.traceparent.clone(),
        turn_seconds: submission.deadline_seconds.unwrap_or(agent.spec.timing.turn_seconds()),
        lease_seconds: agent.spec.timing.lease_seconds(),
        guard: (!agent.guards.is_empty()).then_some((gateway, GUARD_SECONDS)),
        object: submission.object.clone(),
    }
}

fn guarded(arm: &Arm) -> GuardedTurn {
    GuardedTurn {
        turn_id: arm.turn_id,
        organization: arm.organization.clone(),
        conversation: arm.conversation.clone(),
        user: arm.user.clone(),
        agent: arm.agent.clone(),
        worker_group: arm.worker_group.clone(),
        message_id: arm.message_id.clone(),
        routing: Routing::read(Some(&arm.routing)).unwrap_or_default(),
        input: arm.input.clone(),
    }
}

fn input<'a>(turn: &'a GuardedTurn, turn_id: &'a str) -> guard::Input<'a> {
    guard::Input {
        organization: &turn.organization,
        conversation: &turn.conversation,
        user: &turn.user,
        agent: &turn.agent,
        platform: &turn.routing.platform,
        message_id: &turn.message_id,
        turn_id,
        message: &turn.input,
        platform_metadata: &turn.routing.platform_metadata,
    }
}
