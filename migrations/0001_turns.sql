-- Lastword's state. Everything that a turn is lies here; invariants 1 to 4 of the design stand as keys and checks.
--
-- turn      what was asked; never changed
-- marker    "this turn still owes a terminal": from arm to terminal, no longer. Whoever deletes it writes the terminal
-- terminal  a turn's last word; its primary key is the second fence behind the election
-- delivery  "this terminal was shown to nobody yet", a row a turn and platform
-- lease     a worker's life, one row an incarnation, kept dead for a while as a tombstone
-- output    a turn's log, append-only

-- Agents, projected from YAML or from the Kubernetes API, so that gateways need neither.
CREATE TABLE agent (
    namespace  text NOT NULL,
    name       text NOT NULL,
    spec       jsonb NOT NULL,
    generation bigint NOT NULL DEFAULT 1,
    deleted_at timestamptz,                       -- a tombstone, so that late turns find out
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (namespace, name)
);

CREATE TABLE conversation (
    id             uuid PRIMARY KEY,
    organization   text NOT NULL,
    name           text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 256),
    owner          text NOT NULL,
    agent          text,                          -- null until the first turn
    last_number    bigint NOT NULL DEFAULT 0,     -- numbers turns; may skip some
    pruned_through bigint NOT NULL DEFAULT 0,     -- turns up to here may be gone (retention)
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization, name),
    CHECK (pruned_through BETWEEN 0 AND last_number)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE turn (
    id              uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL CHECK (number > 0),
    organization    text NOT NULL,
    conversation    text NOT NULL,
    message_id      text NOT NULL CHECK (octet_length(message_id) BETWEEN 1 AND 256),
    agent           text NOT NULL,
    worker_group      text NOT NULL,
    "user"          text NOT NULL,
    routing         jsonb NOT NULL,               -- platform, team, channel, platformMetadata
    input           text NOT NULL,
    content_hash    bytea NOT NULL,
    traceparent     text,
    armed_at        timestamptz NOT NULL,
    UNIQUE (organization, conversation, message_id),
    UNIQUE (conversation_id, number)
);
CREATE INDEX turn_by_organization ON turn (organization, id);

CREATE TABLE marker (
    turn_id         uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    organization    text NOT NULL,
    agent           text NOT NULL,
    worker_group      text NOT NULL,
    phase           text NOT NULL CHECK (phase IN ('guarding', 'waiting', 'claimed')),
    incarnation     uuid,
    claimed_at      timestamptz,
    guard           uuid,                         -- the replica that guards it
    guard_until     timestamptz,
    lease_seconds   integer NOT NULL CHECK (lease_seconds > 0),
    armed_at        timestamptz NOT NULL,
    deadline_at     timestamptz NOT NULL CHECK (deadline_at > armed_at),
    CHECK ((phase = 'claimed') = (incarnation IS NOT NULL)),
    CHECK ((phase = 'claimed') = (claimed_at IS NOT NULL)),
    CHECK ((phase = 'guarding') = (guard_until IS NOT NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX marker_order ON marker (conversation_id, number);
CREATE INDEX marker_waiting ON marker (organization, worker_group, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_queue ON marker (organization, agent, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_claimed ON marker (incarnation) WHERE incarnation IS NOT NULL;
CREATE INDEX marker_deadline ON marker (deadline_at);
CREATE INDEX marker_guarding ON marker (guard_until) WHERE phase = 'guarding';

CREATE TABLE terminal (
    turn_id         uuid PRIMARY KEY,             -- exactly one, ever
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    organization    text NOT NULL,
    outcome         text NOT NULL CHECK (outcome IN ('reply', 'error')),
    reason          text,
    message         text,
    retryable       boolean,
    detail          text,                         -- for operators alone
    reply_id        text,
    incarnation     uuid,
    holder          uuid NOT NULL,                -- the turn whose log holds the reply: this one, or the first of several
    end_at          bigint NOT NULL CHECK (end_at >= 0),
    answers         smallint NOT NULL DEFAULT 1,  -- how many turns share the reply
    claimed_at      timestamptz,
    ended_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((outcome = 'error') = (reason IS NOT NULL)),
    CHECK ((outcome = 'error') = (message IS NOT NULL)),
    CHECK ((outcome = 'error') = (retryable IS NOT NULL)),
    CHECK (outcome = 'reply' OR holder = turn_id)
);
CREATE UNIQUE INDEX terminal_order ON terminal (conversation_id, number);
CREATE INDEX terminal_ended ON terminal (ended_at);
CREATE INDEX terminal_failed ON terminal (organization, turn_id) WHERE outcome = 'error';

CREATE TABLE delivery (
    turn_id         uuid NOT NULL,
    platform        text NOT NULL,
    organization    text NOT NULL,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    state           text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'parked')),
    due_at          timestamptz NOT NULL,         -- claimed by moving it ahead
    claimed_by      uuid,
    attempts        integer NOT NULL DEFAULT 0,
    PRIMARY KEY (turn_id, platform)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX delivery_due ON delivery (platform, due_at) WHERE state = 'ready';
CREATE INDEX delivery_conversation ON delivery (conversation_id, number);

CREATE TABLE lease (
    incarnation       uuid PRIMARY KEY,
    start_id          uuid NOT NULL,
    organization      text NOT NULL,
    agent             text NOT NULL,
    worker_group        text NOT NULL,
    phase             text NOT NULL CHECK (phase IN ('starting', 'live', 'draining', 'dead')),
    runtime           text NOT NULL,              -- 'process' or 'kubernetes'
    runtime_ref       text NOT NULL,              -- who can be asked about it: a boot of `dev`, a pod's UID
    generation        bigint NOT NULL DEFAULT 0,  -- of the Agent that it was started for
    secret_hash       bytea NOT NULL,
    capacity          integer NOT NULL DEFAULT 1 CHECK (capacity > 0),
    together          boolean NOT NULL DEFAULT false,
    heartbeat_seconds integer NOT NULL CHECK (heartbeat_seconds > 0),
    lease_seconds     integer NOT NULL CHECK (lease_seconds > 0),
    drain_seconds     integer NOT NULL CHECK (drain_seconds >= 0),
    start_attempts    integer NOT NULL DEFAULT 1 CHECK (start_attempts > 0),
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at        timestamptz NOT NULL,       -- the start deadline while starting; no index: heartbeats stay HOT
    idle_since        timestamptz,
    connected_at      timestamptz,
    claimed           boolean NOT NULL DEFAULT false,
    stream            uuid,                       -- the stream that its gateway holds now
    gateway           uuid,
    suspected_at      timestamptz,
    drain_until       timestamptz,
    stop_reason       text,                       -- why it was told to stop: the reason of what it leaves behind
    died_at           timestamptz,
    death_reason      text,
    death_detail      text,
    CHECK ((phase = 'dead') = (died_at IS NOT NULL)),
    CHECK (phase <> 'draining' OR drain_until IS NOT NULL)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX lease_of_start ON lease (start_id) WHERE phase <> 'dead';
CREATE INDEX lease_alive ON lease (organization, worker_group) WHERE phase <> 'dead';
CREATE INDEX lease_dead ON lease (died_at) WHERE phase = 'dead';

-- frames is a JSON array as text: jsonb would refuse some strings and reorder keys.
CREATE TABLE output (
    turn_id  uuid NOT NULL,
    start_at bigint NOT NULL CHECK (start_at >= 0),
    end_at   bigint NOT NULL CHECK (end_at > start_at),
    frames   text NOT NULL,
    PRIMARY KEY (turn_id, start_at)
);

-- A word that came too late, for operators; one a turn.
CREATE TABLE superseded (
    turn_id     uuid PRIMARY KEY,
    incarnation uuid,
    reply_id    text,
    outcome     text NOT NULL,
    reason      text,
    message     text,
    text        text,
    said_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE gateway (
    id         uuid PRIMARY KEY,
    url        text NOT NULL,
    secret     text NOT NULL,                     -- what other replicas show to follow a turn here; of one process' life
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE session (
    id              uuid PRIMARY KEY,
    gateway         uuid NOT NULL,
    organization    text NOT NULL,
    conversation_id uuid NOT NULL,
    owner           boolean NOT NULL,
    registered_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX session_conversation ON session (conversation_id);
CREATE INDEX session_gateway ON session (gateway);

-- The settling gate: verdicts of silence wait until gateways have been able to write for a whole lease.
CREATE TABLE gate (
    single         boolean PRIMARY KEY DEFAULT true CHECK (single),
    seen           timestamptz NOT NULL DEFAULT clock_timestamp(),
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    ticked_seconds double precision NOT NULL DEFAULT 0,   -- ticking between the gaps of one unsettled time: the bound
    longest_lease  double precision NOT NULL DEFAULT 60,  -- of the workers there were at the last gap
    server_started timestamptz NOT NULL DEFAULT pg_postmaster_start_time()
) WITH (fillfactor = 50);
INSERT INTO gate DEFAULT VALUES;

CREATE TABLE api_key (
    id           uuid PRIMARY KEY,
    organization text NOT NULL,
    name         text NOT NULL,
    role         text NOT NULL CHECK (role IN ('user', 'operator')),
    "user"       text NOT NULL,
    hash         bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz
);

CREATE TABLE audit (
    id           uuid PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    organization text NOT NULL,
    actor        text NOT NULL,
    action       text NOT NULL,
    subject      text NOT NULL,
    counts       jsonb NOT NULL DEFAULT '{}'
);
