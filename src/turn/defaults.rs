//! What holds for an Agent where its spec says nothing, in seconds and counts. The CRD's schema does not write these
//! defaults into objects: an object shows what its author wrote, and a later version may choose better defaults. The
//! CRD's CEL rules and the store's queries take the numbers from here.

/// How long a worker may take to start and connect: enough to pull an image of some gigabytes.
pub const START_SECONDS: u32 = 120;
/// The pause between two heartbeats of a worker. It is a third of the lease, so that a worker outlives two lost heartbeats
/// in a row.
pub const HEARTBEAT_SECONDS: u32 = 20;
/// How long a worker may be silent before it counts as dead. It is longer than a failover of the database usually takes.
pub const LEASE_SECONDS: u32 = 60;
/// A turn's hard deadline, counted from its arming. It is an hour because agents with tools work long.
pub const TURN_SECONDS: u32 = 3600;
/// How long a worker that is stopped may finish what it holds: as long as Kubernetes' default grace of a pod.
pub const DRAIN_SECONDS: u32 = 30;
/// How long a worker without turns is kept: longer than most people pause between two messages.
pub const IDLE_SECONDS: u32 = 300;
/// How many starts must fail before the turns that wait for them do. One: a person who waits hears of a failed start at
/// once.
pub const START_ATTEMPTS: u32 = 1;
/// How many workers are kept without demand. None: an agent that nobody talks to costs nothing.
pub const MIN_WORKERS: u32 = 0;
/// How many workers an Agent may have: a bound on the cost of an agent that nobody has sized.
pub const MAX_WORKERS: u32 = 10;
/// How many workers may be retired before those that replace them are live. None: a change costs no capacity.
pub const MAX_UNAVAILABLE: u32 = 0;
/// How many workers may run beyond the limit while workers are replaced. One: else a full house could not change.
pub const MAX_SURGE: u32 = 1;
/// How many turns a worker may hold at once. One: most agent programs serve one turn at a time.
pub const TURNS_PER_WORKER: u32 = 1;
/// How many turns may wait for an agent before a new one is refused (HTTP 429).
pub const MAX_QUEUED_TURNS: u32 = 1000;
/// How long a guardrail's webhook may take to answer.
pub const WEBHOOK_TIMEOUT_SECONDS: u32 = 5;
/// How long a connection to a model server may take to be made.
pub const MODEL_CONNECT_SECONDS: u32 = 10;
/// How long a model server may say nothing. Models that think send comments or thoughts meanwhile, as a rule.
pub const MODEL_SILENCE_SECONDS: u32 = 120;
/// How long a whole completion may take.
pub const MODEL_COMPLETION_SECONDS: u32 = 900;
/// How often a model server is asked again that could not be reached or is overloaded. Once: a person waits.
pub const MODEL_RETRIES: u32 = 1;
/// How many past turns of the conversation a model is sent.
pub const MODEL_HISTORY_TURNS: u32 = 50;
