//! Guardrails: what they answer, and that nobody's guardrails switch off another's.

mod asked;
mod walls;
