//! Submit: a turn is armed, then checked by its Agent's guardrails. The gateway's clients and AgentTurns both come this way.
//!
//! With guardrails a turn is armed as `guarding`, and this replica has the *guard hold* on it, for a few seconds at a time.
//! The check does not depend on the request that submitted the turn. It ends with the turn claimable, or with its terminal.
//! If this replica dies in between, the hold runs out and another one guards the turn ([`Submitter::reguard`]). A verdict
//! that the database does not take is written again and again: a rejected turn is never dispatched for want of a database.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::agents::{Agents, ServedAgent};
use crate::every::{Again, Every, Outage};
use crate::guard::{self, GuardVerdict};
use crate::store::{AgentTurnRef, Arm, ArmError, Armed, GuardedTurn, PrincipalLimits, Store, StoreError, TurnRequest};
use crate::telemetry::traces::{TurnSpan, TurnStep};
use crate::turn::cause::rule::{self, Refusal};
use crate::turn::cursor::MAX_OPEN_TURNS;
use crate::turn::keys::{GatewayId, TurnId, content_hash};
use crate::turn::reason::Reason;
use crate::turn::routing::{API, KUBERNETES, Routing};

/// The length of a guard hold on a turn; it is renewed while the check runs.
const HOLD_SECONDS: u32 = 10;
/// The period of [`Submitter::reguard`].
const REGUARD_EVERY: Duration = Duration::from_secs(2);
/// The pause before a guard's verdict is written again after the database failed.
const RETRY: Duration = Duration::from_millis(500);

/// A turn to submit. The lengths and characters of its names were checked by the caller.
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
    /// The hard deadline in seconds from arming; `None`: the Agent's.
    pub deadline_seconds: Option<u32>,
    /// The AgentTurn that submits it; only such a turn may name the platform `kubernetes`.
    pub object: Option<AgentTurnRef>,
    /// What the user may have; `None`: nothing of it is counted.
    pub limits: Option<PrincipalLimits>,
    /// The request that it was made of, where its client may send it again without a message id.
    pub request: Option<TurnRequest>,
}

impl Submission {
    /// Whether the submission may name its platform: `api`, an AgentTurn's own, or one of those that the Agent has.
    fn may_be_shown(&self, agent: &ServedAgent) -> bool {
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
    /// A user has at most half of a queue, so that one alone cannot lock out the others.
    #[error("{0} turns of yours wait for the agent, which is half of its queue; try again later")]
    ShareFull(u32),
    #[error("the conversation has {MAX_OPEN_TURNS} open turns; wait for some to end")]
    TooManyOpen,
    #[error(transparent)]
    Refused(ArmError),
    /// It is not known whether the turn was armed: submitting it again with the same message id finds out.
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

impl SubmitError {
    /// The reason of a refusal; `None` if it is not known whether the turn was armed, so that the caller tries again.
    pub fn reason(&self) -> Option<Reason> {
        let refusal = match self {
            SubmitError::NoAgent => Refusal::NoAgent,
            SubmitError::QueueFull(_)
            | SubmitError::ShareFull(_)
            | SubmitError::TooManyOpen
            | SubmitError::Refused(ArmError::TooManyOpen(_) | ArmError::TooManyConversations(_)) => Refusal::Full,
            SubmitError::Refused(_) => Refusal::Taken,
            SubmitError::NoPlatform | SubmitError::Store(StoreError::Refused(_)) => Refusal::Unusable,
            SubmitError::Store(_) => return None,
        };
        Some(rule::refused(refusal))
    }
}

/// Arms turns and guards them. Cheap to clone.
#[derive(Clone)]
pub struct Submitter {
    pub store: Store,
    pub agents: Agents,
    pub gateway: GatewayId,
    /// The services that guardrails may call.
    pub services: guard::Services,
}

impl Submitter {
    /// Arms a turn, or finds the one that the same message id armed; guarding goes on after this returns. The text is the
    /// name of the turn's worker group, for people.
    pub async fn submit(&self, mut submission: Submission) -> Result<(Armed, String), SubmitError> {
        let found = self.agents.find(&self.store, &submission.organization, &submission.agent).await?;
        let agent = found.ok_or(SubmitError::NoAgent)?;
        if !submission.may_be_shown(&agent) {
            return Err(SubmitError::NoPlatform);
        }
        submission.limits = self.check_room(&submission, &agent).await?;
        // The turn goes on under the trace of its submit, which begins one where there is none.
        let mut span = TurnSpan::begin(TurnStep::Submit, submission.traceparent.as_deref());
        submission.traceparent = span.traceparent().or(submission.traceparent);
        let arm = arm_request(&submission, &agent, self.gateway);
        let guarded = arm.guard.is_some().then(|| guarded(&arm));
        let armed = self.store.arm(arm).await?;
        span.says("lastword.turn.id", armed.turn_id);
        span.says("lastword.agent", format_args!("{}/{}", submission.organization, submission.agent));
        drop(span);
        if let (Some(turn), true) = (guarded, armed.fresh) {
            tokio::spawn(self.clone().guard(turn, agent));
        }
        let worker_group = armed.worker_group.name(&submission.agent);
        Ok((armed, worker_group))
    }

    /// Checks the limits that can be known before arming, and answers with those that are to be checked with it. A repeat of an
    /// armed message id passes, since it arms nothing.
    async fn check_room(
        &self,
        submission: &Submission,
        agent: &ServedAgent,
    ) -> Result<Option<PrincipalLimits>, SubmitError> {
        let Submission { organization, user, conversation, limits, .. } = submission;
        let max = agent.spec.limits.max_queued_turns();
        let share = limits.map_or(u32::MAX, |_| max.div_ceil(2));
        // What has no limit is not counted.
        let max_open = limits.map_or(0, |limits| if limits.open_turns == u32::MAX { 0 } else { limits.open_turns });
        let before = (self.store)
            .backlog_before_turn(organization, user, &submission.agent, conversation, (max, max_open))
            .await?;
        let refused = if before.queued >= max {
            SubmitError::QueueFull(max)
        } else if before.own_queued >= share {
            SubmitError::ShareFull(before.own_queued)
        } else if before.open >= MAX_OPEN_TURNS as u32 {
            SubmitError::TooManyOpen
        } else {
            return Ok(limits.map(|limits| limits.near(before.own_open)));
        };
        match self.store.knows_message(organization, user, conversation, &submission.message_id).await? {
            true => Ok(None),
            false => Err(refused),
        }
    }

    /// Checks a turn and writes the verdict, however often the database fails.
    async fn guard(self, turn: GuardedTurn, agent: Arc<ServedAgent>) {
        let turn_id = turn.turn_id.to_string();
        let checking = async {
            let verdict = agent.guards.check(&self.services, input(&turn, &turn_id)).await;
            self.write_verdict(&turn, &verdict).await;
        };
        // The hold is kept until the verdict is written, else another replica could pass what this one rejects.
        tokio::select! {
            () = checking => {}
            // Another replica guards the turn now, and its verdict counts.
            () = self.keep_hold(turn.turn_id) => {}
        }
    }

    async fn write_verdict(&self, turn: &GuardedTurn, verdict: &GuardVerdict) {
        let mut outage = Outage::new("the verdict of a guard");
        while let Err(error) = self.try_verdict(turn, verdict).await {
            outage.goes_on(&error);
            tokio::time::sleep(RETRY).await;
        }
        outage.is_over();
    }

    async fn try_verdict(&self, turn: &GuardedTurn, verdict: &GuardVerdict) -> Result<(), StoreError> {
        let failure = match verdict {
            GuardVerdict::Allow => return self.store.pass_guarded_turn(turn.turn_id, self.gateway).await.map(drop),
            GuardVerdict::Reject { message, detail } => rule::rejected(message.clone(), detail.clone()),
            GuardVerdict::NotAsked { detail } => rule::not_asked(detail.clone()),
        };
        // This changes nothing if another replica has the hold now, and has let the turn pass.
        self.store.reject_guarded_turn(turn.turn_id, self.gateway, &failure).await.map(drop)
    }

    /// Renews the guard hold again and again; returns when this replica no longer has it.
    async fn keep_hold(&self, turn: TurnId) {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(HOLD_SECONDS) / 3)).await;
            if let Ok(false) = self.store.keep_guarding_turn(turn, self.gateway, HOLD_SECONDS).await {
                return;
            }
        }
    }

    /// Guards the turns whose guard hold ran out, until `shutdown`.
    pub async fn reguard(self, shutdown: CancellationToken) {
        let mut looks = Every::new("the guarding of abandoned turns", REGUARD_EVERY);
        while looks.next(&shutdown).await.is_some() {
            looks.ended(self.guard_abandoned().await);
        }
    }

    async fn guard_abandoned(&self) -> Result<Again, StoreError> {
        for turn in self.store.take_unguarded_turns(self.gateway, HOLD_SECONDS).await? {
            self.guard_again(turn).await;
        }
        Ok(Again::Later)
    }

    /// Guards a turn that was taken over. If this fails, the turn is taken over again when the hold has run out once
    /// more.
    async fn guard_again(&self, turn: GuardedTurn) {
        let turn_id = turn.turn_id;
        match self.agents.find(&self.store, &turn.organization, &turn.agent).await {
            Ok(Some(agent)) => drop(tokio::spawn(self.clone().guard(turn, agent))),
            Err(error) => tracing::debug!(%error, "turn {turn_id} is guarded later: its Agent was not read"),
            Ok(None) => {
                let failure = rule::agent_gone();
                // Under the hold: another replica may have found the Agent, and let the turn pass, meanwhile.
                if let Err(error) = self.store.reject_guarded_turn(turn_id, self.gateway, &failure).await {
                    tracing::debug!(%error, "turn {turn_id} has no Agent any more; it is ended later");
                }
            }
        }
    }
}

/// What the store is asked to arm for a submission. Nothing is armed here.
fn arm_request(submission: &Submission, agent: &ServedAgent, gateway: GatewayId) -> Arm {
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
        grouping: agent.grouping(),
        user: submission.user.clone(),
        routing: serde_json::to_value(&routing).unwrap_or(Value::Null),
        input: submission.message.clone(),
        content_hash: hash,
        traceparent: submission.traceparent.clone(),
        turn_seconds: submission.deadline_seconds.unwrap_or(agent.spec.timing.turn_seconds()),
        guard: (!agent.guards.is_empty()).then_some((gateway, HOLD_SECONDS)),
        object: submission.object.clone(),
        limits: submission.limits,
        request: submission.request.clone(),
    }
}

/// What a guard needs of a turn that is about to be armed.
fn guarded(arm: &Arm) -> GuardedTurn {
    GuardedTurn {
        turn_id: arm.turn_id,
        organization: arm.organization.clone(),
        conversation: arm.conversation.clone(),
        user: arm.user.clone(),
        agent: arm.agent.clone(),
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
