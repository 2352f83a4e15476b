//! What browsers need: pages of other origins, streams without a header, logins, lists; and the page itself.

mod lists;
mod logins;
mod network;
mod origins;
mod page;
mod sources;
mod tickets;
mod types;
