//! The store on a real Postgres, the oldest and the newest that Lastword runs on: the promises of the design's §2 to §4.
//!
//! A row such as A4 in a test's comment is the requirement that it shows.

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "a part of it is used here")]
#[path = "../support/forwarder.rs"]
mod forwarder;

mod arming;
mod claiming;
mod delivery;
mod drain;
mod gate;
mod keeping;
mod late;
mod log;
mod malformed;
mod million;
mod objects;
mod pods;
mod poison;
mod race;
mod scale;
mod several;
mod silence;
mod starts;
