//! The store on a real Postgres, the oldest and the newest that Lastword runs on: what its verbs promise (see
//! ARCHITECTURE.md), a module a theme.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the target `machine` uses all of it")]
mod support;

mod arming;
mod browsers;
mod carriers;
mod claiming;
mod delivery;
mod drain;
mod gate;
mod keeping;
mod late;
mod log;
mod malformed;
mod objects;
mod pods;
mod poison;
mod race;
mod requests;
mod rollout;
mod serial;
mod several;
mod silence;
mod starts;
mod steps;
mod walls;
