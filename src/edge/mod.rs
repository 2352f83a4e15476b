//! The edge of a process: what all of its ports have in common, whoever they serve. What strangers cause is bounded here
//! before it is done: a route is found first, then the route's handler finds out who calls, and only then is a body read.
//!
//! - [`serve()`]: accepts connections, within bounds of number, time and size, with or without TLS
//! - [`bodies`]: the room for the bodies of requests; one is reserved whole before it is read, or refused
//! - [`answers`]: what every answer has in common: errors are problems, headers that browsers obey
//! - [`framing`]: streams need HTTP/1.1 at least
//! - `http2`: what one connection with many streams may have
//! - `patience`: who does not read is not waited for
//! - [`peer`]: which user of this machine has the other end of a connection over loopback
//! - [`files`]: how many files the process may have open, which bounds its connections

pub mod answers;
pub mod bodies;
pub mod files;
pub mod framing;
mod http2;
mod patience;
pub mod peer;
mod serve;

pub use serve::{PortLimits, serve};
