//! What adapters share that ask a server over HTTP for each turn: how it is reached, why it gave no answer, and the bytes of the
//! answer that it gave.

pub(super) mod body;
pub(super) mod fault;
pub(super) mod route;
