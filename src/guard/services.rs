//! What guardrails are asked with.

use std::sync::Arc;

use super::evaluators::Evaluators;
use super::places::Places;
use crate::egress::Outbound;
use crate::secrets::Secrets;

/// The most questions to services at a time. Each takes a socket, a task, and a copy of the message.
const MAX_ASKED: usize = 512;
/// The most questions to services of one organization at a time.
const MAX_ASKED_EACH: usize = 64;

/// What guardrails are asked with: the processes that evaluate expressions; for services a client, and the Secrets that may
/// hold their URLs. Clones share all of it.
#[derive(Clone, Debug)]
pub struct Services {
    /// A client with [`Reach::Cluster`](crate::egress::Reach::Cluster).
    pub outbound: Outbound,
    pub secrets: Arc<dyn Secrets>,
    pub evaluators: Evaluators,
    /// The places of questions to services.
    pub(super) places: Places,
}

impl Services {
    /// `outbound`: a client with [`Reach::Cluster`](crate::egress::Reach::Cluster).
    pub fn new(outbound: Outbound, secrets: Arc<dyn Secrets>, evaluators: Evaluators) -> Self {
        Services { outbound, secrets, evaluators, places: Places::new(MAX_ASKED, MAX_ASKED_EACH) }
    }
}
