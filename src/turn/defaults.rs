//! What an Agent has where its spec says nothing, in seconds and counts. The CRD's schema does not carry these defaults, so
//! that an object shows what its author wrote and a later version may choose better; its CEL rules and the store's queries
//! take the numbers from here.

/// Enough for a cold image pull of some gigabytes.
pub const START_SECONDS: u32 = 120;
/// A third of the lease: two lost heartbeats in a row are survived.
pub const HEARTBEAT_SECONDS: u32 = 20;
/// The longest that a silent death stays unnoticed. Longer than a database failover usually takes.
pub const LEASE_SECONDS: u32 = 60;
/// The hard deadline of a turn from its arming; an hour, since agents with tools work long.
pub const TURN_SECONDS: u32 = 3600;
/// As the grace of a pod in Kubernetes.
pub const DRAIN_SECONDS: u32 = 30;
/// How long a worker without turns is kept: a person's pause between two messages.
pub const IDLE_SECONDS: u32 = 300;
/// One: a person who waits hears of a failed start at once.
pub const START_ATTEMPTS: u32 = 1;
/// None: an agent that nobody talks to costs nothing.
pub const MIN_WORKERS: u32 = 0;
/// A bound on cost for an agent that nobody has sized.
pub const MAX_WORKERS: u32 = 10;
/// One: most agent programs serve one turn at a time.
pub const TURNS_PER_WORKER: u32 = 1;
/// Turns that may wait for an agent before a new one is refused (429).
pub const MAX_QUEUED_TURNS: u32 = 1000;
/// The timeout of a guardrail's webhook.
pub const WEBHOOK_TIMEOUT_SECONDS: u32 = 5;
