//! Input guardrails: what a message must pass before the agent sees it.
//!
//! An Agent's guardrails are asked in order, and the first rejection wins. A guardrail that cannot decide is *broken*:
//! its expression fails at run time or takes too long; its service is down, slow, or answers something else than a
//! decision. Then its `failurePolicy` decides: `Fail` (the default) rejects, `Ignore` goes on with the next guardrail.
//! Nothing else ever lets a message through unchecked: a check that panics and a URL whose Secret is missing count as
//! broken, and a message too large to check is rejected.
//!
//! No verdict is remembered here. Whoever guards a turn again, because the replica that guarded it died, asks every
//! guardrail again; a webhook recognises the repetition by its constant `webhook-id`.
//!
//! - `guards`: the guardrails of an Agent, compiled, and how they are asked
//! - `guardrail`: what one guardrail is given, and what it answers
//! - `cel`, `webhook`: the two kinds of guardrails

mod cel;
mod guardrail;
mod guards;
mod webhook;

pub use guardrail::{GuardrailProblem, Input, Services};
pub use guards::{CompileError, GuardVerdict, Guards, MAX_MESSAGE_BYTES, NOT_CHECKED};

#[cfg(test)]
mod tests;
