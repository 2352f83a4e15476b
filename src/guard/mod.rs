//! Input guardrails: what a message must pass before the agent sees it.
//!
//! An Agent's guardrails are asked in order, and the first rejection wins. A guardrail that cannot decide is *broken*:
//! its expression fails at run time or takes too much time or memory; its service is down, slow, or answers something else
//! than a decision. Then its `failurePolicy` decides: `Fail` (the default) rejects, `Ignore` goes on with the next guardrail.
//! Nothing else ever lets a message through unchecked: a check that panics and a URL whose Secret is missing count as
//! broken, and a message too large to check is rejected.
//!
//! What Lastword itself lacks is no answer of a guardrail, and no policy is asked: where there is no room to ask it, whoever
//! took it, the question waits, and in the end the message was *not asked* about. So one tenant's guardrails, however slow or
//! large, never switch off another's, not even those that say `Ignore`: places are shared fairly by organizations.
//!
//! No verdict is remembered here. Whoever guards a turn again, because the replica that guarded it died, asks every
//! guardrail again; a webhook recognises the repetition by its constant `webhook-id`.
//!
//! - `guards`: the guardrails of an Agent, compiled, and how they are asked
//! - `guardrail`: what one guardrail is given, and what it answers
//! - `cel`, `webhook`: the two kinds of guardrails
//! - `evaluators`, `evaluator`: expressions are evaluated in processes that can be killed, and what such a process is
//! - `services`: what guardrails are asked with
//! - `places`: what can be had so many times only, shared fairly

mod cel;
mod evaluator;
pub mod evaluators;
mod guardrail;
mod guards;
mod places;
mod services;
mod webhook;

pub use evaluator::run as evaluate;
pub use evaluators::Evaluators;
pub use guardrail::{GuardrailProblem, Input};
pub use guards::{CompileError, GuardVerdict, Guards, MAX_MESSAGE_BYTES, NOT_CHECKED};
pub use services::Services;
