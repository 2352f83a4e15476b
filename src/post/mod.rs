//! Posts terminals to the platforms that an Agent's spec lists: `webhook` and `slack`. Every controller replica runs
//! [`run()`], and so does `dev`.
//!
//! A terminal is posted at least once, always under the same `webhook-id`. A renderer takes its delivery row for longer
//! than an attempt may last, and removes the row after a 2xx. The Agent's spec, the URL and the signing secret are read
//! for each attempt, so that a change of them counts at once. What fails is tried again after growing pauses, and at
//! last given up: the row stays, with the error text, and is not tried again. Operators see it.
//!
//! - `run`: the loop that takes due rows
//! - `attempt`: one attempt to post one terminal
//! - `decide`: what an answer means, and what follows from it; without IO
//! - `webhook`, `slack`: what is posted

mod attempt;
mod decide;
mod run;
mod slack;
mod webhook;

pub use decide::{MAX_ATTEMPTS, MAX_REFUSALS};
pub use run::run;
