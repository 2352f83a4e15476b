-- What Kubernetes adds: workers that are pods.

-- The object's UID; null on one machine. An Agent that was deleted and made again is another Agent.
ALTER TABLE agent ADD COLUMN uid text;
-- The generation that the object began with, and when it came here: what failed before was its predecessor's.
ALTER TABLE agent ADD COLUMN object_began bigint;
ALTER TABLE agent ADD COLUMN object_since timestamptz;

-- The UID of the worker's pod, recorded when it was made: what a pod's token is held against. Null for processes, and
-- for a start whose pod is not made yet.
ALTER TABLE lease ADD COLUMN pod_uid text;
-- Whether `stop_reason` was recorded by whoever stopped the worker, or is only what the worker guessed from a signal.
ALTER TABLE lease ADD COLUMN stop_recorded boolean NOT NULL DEFAULT true;
-- Dead ones too: a token of a pod whose lease is dead is told so.
CREATE INDEX lease_of_pod ON lease (runtime_ref) WHERE runtime = 'kubernetes';
-- Seconds between SIGTERM and SIGKILL in the pod; null until it was made.
ALTER TABLE lease ADD COLUMN grace_seconds integer;
-- Why the start has not come to life so far, where it may still heal: its reason if the start deadline passes.
ALTER TABLE lease ADD COLUMN start_cause text;
ALTER TABLE lease ADD COLUMN start_detail text;

-- When somebody else began to stop it (Kubernetes, a person); null while nobody does, and for stops of our own. A start
-- that this happens to is no failed one, and too many of them are.
ALTER TABLE lease ADD COLUMN interrupted_at timestamptz;
-- Starts that came to nothing: few, whatever else has died.
CREATE INDEX lease_unclaimed ON lease (died_at) WHERE phase = 'dead' AND NOT claimed;

-- A worker connects by its start, also under a credential whose lease is dead.
CREATE INDEX lease_by_start ON lease (start_id);

-- Numbers the starts, so that each has a name of its own, for ever.
CREATE SEQUENCE start_number;

-- What the renderers of other platforms (webhook, slack) look for: few rows, whatever `api` has parked.
ALTER TABLE delivery ADD COLUMN problem text;      -- why the last attempt failed; never a URL
CREATE INDEX delivery_posts ON delivery (due_at) WHERE state = 'ready' AND platform NOT IN ('api', 'kubernetes');
CREATE INDEX delivery_given_up ON delivery (turn_id) WHERE state = 'parked' AND platform NOT IN ('api', 'kubernetes');

-- AgentTurns.

-- The object's metadata.generation: what an older reading of the same object is told from.
ALTER TABLE agent ADD COLUMN object_generation bigint;

-- Whose hand a turn was in when it ended, also where that worker did not say the last word.
ALTER TABLE terminal ADD COLUMN held_by uuid;
-- What the writer of Events reads: failures in their order, and deaths of workers.
CREATE INDEX terminal_failed_at ON terminal (ended_at) WHERE outcome = 'error';

-- The AgentTurn that a turn was armed for; written with the turn, removed when its status shows the terminal or the
-- object is gone.
CREATE TABLE object (
    turn_id      uuid PRIMARY KEY,
    organization text NOT NULL,                   -- its namespace
    name         text NOT NULL,
    uid          text NOT NULL,
    armed_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX object_uid ON object (organization, uid);

-- Retention.

-- Since when a conversation has had no turn; null while it has one. A column of its own, and not an index over numbers
-- that every arm moves: those updates stay HOT.
ALTER TABLE conversation ADD COLUMN empty_since timestamptz;
UPDATE conversation SET empty_since = clock_timestamp() WHERE pruned_through = last_number;
CREATE INDEX conversation_empty ON conversation (empty_since) WHERE empty_since IS NOT NULL;
