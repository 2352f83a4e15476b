-- The schema of Lastword, as of its first release. How it changes from here: README.md in this folder.
--
-- A turn is one message to one agent; it owes its client exactly one terminal, a reply or an error. The keys and checks
-- below are what makes that hold whatever the program does:
--
--   turn          what was asked; never changed
--   marker        "this turn still owes its terminal": from arm to terminal, no longer. Who deletes it writes the terminal
--   terminal      a turn's last word; the primary key is the second fence behind the deletion of the marker
--   delivery      "this terminal was not shown yet", a row for each platform that is to show it
--   output        a turn's log: what its worker streamed, append-only
--   request       what a client asked for beside the message, in protocols without message ids
--   lease         a worker's life, one row an incarnation, kept dead for a while as a tombstone
--
-- There are no foreign keys on purpose: the rows of a turn are written and removed together by the statements in
-- src/store/, and the locks that foreign keys take on turn and conversation would make workers wait for each other.
--
-- Times are the database's. Tables whose rows are updated again and again leave room in their pages (fillfactor), so that
-- updates of columns without an index stay in the page and touch no index ("HOT"), and are vacuumed early.

-- Agents as controllers copied them here, from YAML or from the Kubernetes API, so that gateways need neither.
CREATE TABLE agent (
    namespace         text NOT NULL,                -- the organization, everywhere else
    name              text NOT NULL,
    spec              jsonb NOT NULL,
    generation        bigint NOT NULL DEFAULT 1,    -- grows with each change of the spec or of the object
    config            bigint NOT NULL DEFAULT 1,    -- grows with each change of what a worker is made of, see src/store/agent.rs
    proven            bigint NOT NULL DEFAULT 0,    -- the newest config of which a worker has come to life
    capacity          integer,                      -- what leases take from the spec: turns at a time,
    heartbeat_seconds integer,                      -- and their terms; null if the spec cannot be read
    lease_seconds     integer,
    uid               text,                         -- the object's; null on one machine. Made again, it is another Agent
    object_generation bigint,                       -- metadata.generation; an older reading of the object is known by it
    object_began      bigint,                       -- `config` when the object came here; an earlier worker was not its
    object_since      timestamptz,                  -- when that was; an earlier failure was not the object's
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at        timestamptz,                  -- a tombstone, from which turns that wait find out
    PRIMARY KEY (namespace, name)
);

CREATE TABLE conversation (
    id             uuid PRIMARY KEY,
    organization   text NOT NULL,
    owner          text NOT NULL,                   -- the user who submitted the first turn; nobody else submits any
    name           text NOT NULL,                   -- the owner's own: another user's conversation may have the same
    agent          text,                            -- that of the first turn
    last_number    bigint NOT NULL DEFAULT 0,       -- of the newest turn; numbers may be skipped
    pruned_through bigint NOT NULL DEFAULT 0,       -- turns up to this number may be gone
    empty_since    timestamptz,                     -- since when it has had no turn; null while it has one
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization, owner, name),
    CONSTRAINT conversation_name_length_check CHECK (octet_length(name) BETWEEN 1 AND 256),
    CONSTRAINT conversation_pruned_within_check CHECK (pruned_through BETWEEN 0 AND last_number)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
-- For operators, who ask for a name without saying whose.
CREATE INDEX conversation_name_idx ON conversation (organization, name);
-- For the retention. By a column of its own, and not by the numbers, which every arm moves: those updates stay HOT.
CREATE INDEX conversation_empty_idx ON conversation (empty_since) WHERE empty_since IS NOT NULL;

-- A user's conversations, newest first: the ids grow with time. None of its columns ever changes, so arms stay HOT.
CREATE INDEX conversation_owner_idx ON conversation (organization, owner, id);

-- Whoever owns conversations, and how many: a row is locked behind the conversations that it counts.
CREATE TABLE principal (
    organization  text NOT NULL,
    owner         text NOT NULL,
    conversations bigint NOT NULL,
    PRIMARY KEY (organization, owner)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE turn (
    id              uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,                -- its place in the conversation
    organization    text NOT NULL,
    conversation    text NOT NULL,                  -- the conversation's name
    message_id      text NOT NULL,                  -- the client's; a repeat means this turn
    agent           text NOT NULL,
    worker_group    uuid NOT NULL,                  -- the Agent's workers that it may go to: the conversation's, by its id; nil: all
    "user"          text NOT NULL,
    routing         jsonb NOT NULL,                 -- platform, team, channel, platformMetadata: where the terminal is shown
    input           text NOT NULL,                  -- the message
    content_hash    bytea NOT NULL,                 -- what a repeat is compared by
    traceparent     text,
    armed_at        timestamptz NOT NULL,
    UNIQUE (conversation_id, message_id),
    UNIQUE (conversation_id, number),
    CONSTRAINT turn_number_positive_check CHECK (number > 0),
    CONSTRAINT turn_message_id_length_check CHECK (octet_length(message_id) BETWEEN 1 AND 256)
);
CREATE INDEX turn_organization_idx ON turn (organization, id);

CREATE TABLE marker (
    turn_id         uuid PRIMARY KEY,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    organization    text NOT NULL,
    owner           text NOT NULL,                  -- of the conversation
    agent           text NOT NULL,
    worker_group    uuid NOT NULL,
    rank            smallint NOT NULL DEFAULT 0,    -- its place among those of its owner that wait for the Agent, up to 100
    phase           text NOT NULL,
    incarnation     uuid,                           -- the worker that has claimed the turn
    claimed_at      timestamptz,
    guard           uuid,                           -- the gateway that checks it against the guardrails
    guard_until     timestamptz,                    -- then another gateway may
    armed_at        timestamptz NOT NULL,
    deadline_at     timestamptz NOT NULL,
    CONSTRAINT marker_phase_known_check CHECK (phase IN ('guarding', 'waiting', 'claimed')),
    CONSTRAINT marker_claimed_has_incarnation_check CHECK ((phase = 'claimed') = (incarnation IS NOT NULL)),
    CONSTRAINT marker_claimed_has_time_check CHECK ((phase = 'claimed') = (claimed_at IS NOT NULL)),
    CONSTRAINT marker_guarding_has_time_check CHECK ((phase = 'guarding') = (guard_until IS NOT NULL)),
    CONSTRAINT marker_deadline_after_arm_check CHECK (deadline_at > armed_at)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX marker_conversation_id_number_key ON marker (conversation_id, number);
-- Those that wait, in both orders of claims: the oldest first, and the first of each owner first.
CREATE INDEX marker_waiting_of_group_idx ON marker (organization, agent, worker_group, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_ranked_of_group_idx ON marker (organization, agent, worker_group, rank, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_waiting_of_agent_idx ON marker (organization, agent, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_ranked_of_agent_idx ON marker (organization, agent, rank, armed_at) WHERE incarnation IS NULL;
CREATE INDEX marker_owner_idx ON marker (organization, owner, agent, rank);
CREATE INDEX marker_claimed_idx ON marker (incarnation) WHERE incarnation IS NOT NULL;
CREATE INDEX marker_deadline_idx ON marker (deadline_at);
CREATE INDEX marker_guarding_idx ON marker (guard_until) WHERE phase = 'guarding';

CREATE TABLE terminal (
    turn_id         uuid PRIMARY KEY,               -- exactly one, ever
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    organization    text NOT NULL,
    outcome         text NOT NULL,
    reason          text,
    message         text,                           -- for the client
    retryable       boolean,
    detail          text,                           -- for operators alone
    finish_reason   text,                           -- why the model stopped, in its server's words, where one did
    reply_id        text,                           -- the worker's name for its word, by which a repeat is known
    incarnation     uuid,                           -- the worker whose word it is; null: Lastword itself ended the turn
    held_by         uuid,                           -- the worker that had claimed the turn, whoever ended it
    holder          uuid NOT NULL,                  -- the turn whose log has the reply: this one, or one that it shares it with
    end_at          bigint NOT NULL,                -- where the reply ends in that log
    answers         smallint NOT NULL DEFAULT 1,    -- how many turns share the reply
    log_gone        boolean NOT NULL DEFAULT false, -- that log was found incomplete: nobody is shown the reply any more
    claimed_at      timestamptz,
    ended_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT terminal_outcome_known_check CHECK (outcome IN ('reply', 'error')),
    CONSTRAINT terminal_error_has_reason_check CHECK ((outcome = 'error') = (reason IS NOT NULL)),
    CONSTRAINT terminal_error_has_message_check CHECK ((outcome = 'error') = (message IS NOT NULL)),
    CONSTRAINT terminal_error_has_retryable_check CHECK ((outcome = 'error') = (retryable IS NOT NULL)),
    CONSTRAINT terminal_error_is_not_shared_check CHECK (outcome = 'reply' OR holder = turn_id),
    CONSTRAINT terminal_end_not_negative_check CHECK (end_at >= 0),
    CONSTRAINT terminal_error_needs_no_log_check CHECK (outcome = 'reply' OR NOT log_gone)
);
CREATE UNIQUE INDEX terminal_conversation_id_number_key ON terminal (conversation_id, number);
CREATE INDEX terminal_ended_idx ON terminal (ended_at, turn_id);
-- The turns of a reply to several: few among many, and not close to each other where others have ended between them.
CREATE INDEX terminal_shared_idx ON terminal (holder, number) WHERE answers > 1;
CREATE INDEX terminal_log_gone_idx ON terminal (conversation_id, number) WHERE log_gone;
CREATE INDEX terminal_failed_of_organization_idx ON terminal (organization, turn_id) WHERE outcome = 'error';
CREATE INDEX terminal_failed_idx ON terminal (ended_at) WHERE outcome = 'error';

CREATE TABLE delivery (
    turn_id         uuid NOT NULL,
    platform        text NOT NULL,
    organization    text NOT NULL,
    conversation_id uuid NOT NULL,
    number          bigint NOT NULL,
    state           text NOT NULL DEFAULT 'ready',
    due_at          timestamptz NOT NULL,           -- a renderer takes the row by moving this ahead
    claimed_by      uuid,                           -- that renderer
    attempts        integer NOT NULL DEFAULT 0,
    problem         text,                           -- why the last attempt failed; never a URL
    PRIMARY KEY (turn_id, platform),
    CONSTRAINT delivery_state_known_check CHECK (state IN ('ready', 'parked'))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX delivery_due_idx ON delivery (platform, due_at) WHERE state = 'ready';
CREATE INDEX delivery_conversation_idx ON delivery (conversation_id, number);
-- For the platforms that Agents name themselves: few rows, however many `api` has parked.
CREATE INDEX delivery_posts_idx ON delivery (due_at) WHERE state = 'ready' AND platform NOT IN ('api', 'kubernetes');
CREATE INDEX delivery_given_up_idx ON delivery (turn_id) WHERE state = 'parked' AND platform NOT IN ('api', 'kubernetes');

-- Offsets count the log's units. `frames` is a JSON array as text: jsonb would refuse some strings and reorder keys.
CREATE TABLE output (
    turn_id  uuid NOT NULL,
    start_at bigint NOT NULL,
    end_at   bigint NOT NULL,
    frames   text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- of the first row: when the turn began to speak, to within a batch
    PRIMARY KEY (turn_id, start_at),
    CONSTRAINT output_start_not_negative_check CHECK (start_at >= 0),
    CONSTRAINT output_end_after_start_check CHECK (end_at > start_at)
);

-- A word that came too late, kept for operators; one a turn.
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

-- What a client asked for beside the message, in protocols that have no message id: a request that is sent again is known by
-- its digest and finds the turn that it made. Written with the turn.
CREATE TABLE request (
    turn_id      uuid PRIMARY KEY,
    organization text NOT NULL,
    owner        text NOT NULL,
    digest       bytea NOT NULL,                    -- of what makes two requests the same one
    place        integer NOT NULL,                  -- among the turns of the same digest, from 0 on
    body         bytea NOT NULL,                    -- a digest of all that was asked
    by_retry     boolean NOT NULL,                  -- a repeat armed it, and the request that it repeats was not seen
    context      bytea,                             -- a digest of the messages that a reply would be appended to
    asked        jsonb,                             -- what is shown with the response; null: it cannot be retrieved
    armed_at     timestamptz NOT NULL,
    CONSTRAINT request_place_not_negative_check CHECK (place >= 0)
);
CREATE INDEX request_alike_idx ON request (organization, owner, digest, place);
CREATE INDEX request_context_idx ON request (organization, owner, context, armed_at) WHERE context IS NOT NULL;

-- Numbers the starts of workers, so that no two ever have the same name.
CREATE SEQUENCE start_number;

CREATE TABLE lease (
    incarnation       uuid PRIMARY KEY,             -- until the worker connects: its start's id
    start_id          uuid NOT NULL,
    organization      text NOT NULL,
    agent             text NOT NULL,
    worker_group      uuid NOT NULL,                -- the conversation that it is for; nil: for all of the Agent's
    config            bigint NOT NULL DEFAULT 0,    -- of the Agent that it was started for
    phase             text NOT NULL,
    -- What it is:
    runtime           text NOT NULL,                -- 'process' or 'kubernetes'
    runtime_ref       text NOT NULL,                -- the runtime's name of it: the boot of a `dev`, a pod's namespace/name
    pod_uid           text,                         -- once the pod was made; what the pod's token is held against
    grace_seconds     integer,                      -- between SIGTERM and SIGKILL in the pod, once it was made
    secret_hash       bytea NOT NULL,               -- of the worker's credential
    -- Its terms:
    capacity          integer NOT NULL DEFAULT 1,   -- turns at a time
    offered           integer,                      -- turns at a time that the worker could take, once it has connected
    together          boolean NOT NULL DEFAULT false, -- takes all turns of a conversation that wait together
    heartbeat_seconds integer NOT NULL,
    lease_seconds     integer NOT NULL,
    drain_seconds     integer NOT NULL,
    start_attempts    integer NOT NULL DEFAULT 1,   -- failed starts that a waiting turn goes through
    -- Its life:
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at        timestamptz NOT NULL,         -- the start deadline while starting. No index: heartbeats stay HOT
    connected_at      timestamptz,
    gateway           uuid,                         -- the replica that holds its stream
    stream            uuid,                         -- that stream
    heard_by          uuid,                         -- the replica that carried its last sign of life: a connect or a beat
    suspected_at      timestamptz,                  -- when the stream closed without a goodbye
    claimed           boolean NOT NULL DEFAULT false, -- whether it ever took a turn: one that dies before is a failed start
    idle_since        timestamptz,                  -- null while it holds a turn
    start_extended    boolean NOT NULL DEFAULT false, -- whether the start's verdict has waited, since a gateway was lost meanwhile
    start_cause       text,                         -- why the start has not come to life so far: the reason if it never does
    start_detail      text,
    -- Its end:
    retiring          boolean NOT NULL DEFAULT false, -- it claims nothing more, and leaves when it holds nothing
    drain_until       timestamptz,
    stop_reason       text,                         -- why it was told to stop: the reason of the turns that it leaves behind
    stop_recorded     boolean NOT NULL DEFAULT true, -- false: the reason is only what the worker guessed from a signal
    interrupted_at    timestamptz,                  -- when somebody else than Lastword began to stop it
    died_at           timestamptz,
    death_reason      text,
    death_detail      text,
    CONSTRAINT lease_phase_known_check CHECK (phase IN ('starting', 'live', 'draining', 'dead')),
    CONSTRAINT lease_dead_has_time_check CHECK ((phase = 'dead') = (died_at IS NOT NULL)),
    CONSTRAINT lease_draining_has_time_check CHECK (phase <> 'draining' OR drain_until IS NOT NULL),
    CONSTRAINT lease_capacity_positive_check CHECK (capacity > 0),
    CONSTRAINT lease_heartbeat_positive_check CHECK (heartbeat_seconds > 0),
    CONSTRAINT lease_lease_positive_check CHECK (lease_seconds > 0),
    CONSTRAINT lease_drain_not_negative_check CHECK (drain_seconds >= 0),
    CONSTRAINT lease_start_attempts_positive_check CHECK (start_attempts > 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX lease_living_start_id_key ON lease (start_id) WHERE phase <> 'dead';
-- With the dead ones: a worker may come with the credential of a start that is dead, and a pod with its token; both are told.
CREATE INDEX lease_start_idx ON lease (start_id);
CREATE INDEX lease_pod_idx ON lease (runtime_ref) WHERE runtime = 'kubernetes';
CREATE INDEX lease_living_of_group_idx ON lease (organization, agent, worker_group) WHERE phase <> 'dead';
-- A conversation has one worker that serves it, or will. One that drains or retires is beside it.
CREATE UNIQUE INDEX lease_of_conversation_key ON lease (worker_group)
    WHERE phase IN ('starting', 'live') AND NOT retiring AND worker_group <> '00000000-0000-0000-0000-000000000000';
CREATE INDEX lease_dead_idx ON lease (died_at) WHERE phase = 'dead';
-- Starts that came to nothing: few, whatever else has died.
CREATE INDEX lease_futile_idx ON lease (died_at) WHERE phase = 'dead' AND NOT claimed;

-- The tie between a turn and the AgentTurn that it was armed for: written with the turn, removed when the object's status
-- shows the terminal, or the object is gone.
CREATE TABLE agent_turn (
    turn_id      uuid PRIMARY KEY,
    organization text NOT NULL,                     -- the object's namespace
    name         text NOT NULL,
    uid          text NOT NULL,
    armed_at     timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX agent_turn_object_idx ON agent_turn (organization, uid);

-- Gateway replicas: each renews its row with every heartbeat tick, and removes it when it stops. The row of one that is lost
-- stays while a lease that is not dead names it.
CREATE TABLE gateway (
    id          uuid PRIMARY KEY,                   -- of one process' life
    url         text NOT NULL,                      -- of its worker port
    secret      text NOT NULL,                      -- what other replicas show to follow a turn there
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),  -- it has ticked without a gap from here on, until `seen`
    seen_before timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when the beats of its last tick but one were gathered
    seen        timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when the beats of its last tick were gathered
    expires_at  timestamptz NOT NULL,               -- then it counts as lost
    returned_at timestamptz                         -- when it last ticked again after it had counted as lost
) WITH (fillfactor = 50);

-- Clients' SSE connections on conversations, and the replicas that hold them.
CREATE TABLE session (
    id              uuid PRIMARY KEY,
    gateway         uuid NOT NULL,
    organization    text NOT NULL,
    conversation_id uuid NOT NULL,
    owner           boolean NOT NULL,               -- whether it is the conversation's owner who listens
    registered_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX session_conversation_idx ON session (conversation_id);
CREATE INDEX session_gateway_idx ON session (gateway);

-- The settling gate, one row: after an outage verdicts of silence wait until workers have had the time to speak again.
CREATE TABLE gate (
    single         boolean PRIMARY KEY DEFAULT true,
    seen           timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when the beats of the last tick were gathered
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when the last gap between ticks ended
    ticked_seconds double precision NOT NULL DEFAULT 0,   -- what all ticks add up to, for a gap no more than its length
    server_started timestamptz NOT NULL DEFAULT pg_postmaster_start_time(),
    CONSTRAINT gate_one_row_check CHECK (single)
) WITH (fillfactor = 50);
INSERT INTO gate DEFAULT VALUES;

-- Gaps between ticks, by the whole seconds without one before each. A gap removes those before it that followed a time no
-- longer than its own: the last of at least some length is what is asked for. So there are few, also after years.
CREATE TABLE gap (
    steady_seconds bigint PRIMARY KEY,
    ticked_seconds double precision NOT NULL              -- of the gate, when the gap ended
);

-- How far the retention has come, one row. It looks at what has ended in the order of the ends, and begins anew at the end.
CREATE TABLE retention (
    single       boolean PRIMARY KEY DEFAULT true,
    turn_seconds bigint NOT NULL DEFAULT 2592000,   -- how long turns are kept, as the last pass had it; for the metrics
    looked_until timestamptz,                       -- the terminal that was looked at last; null at the beginning
    looked_turn  uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    CONSTRAINT retention_one_row_check CHECK (single)
) WITH (fillfactor = 50);
INSERT INTO retention DEFAULT VALUES;

-- Which namespace an organization is, in Kubernetes. One that is made again under the same name inherits nothing: its keys are
-- revoked at once, and what it had is removed before an Agent of the new one is served.
CREATE TABLE organization (
    name              text PRIMARY KEY,
    namespace_uid     text NOT NULL,
    namespace_created timestamptz NOT NULL,         -- by the API server's clock: whoever has read an older one is late
    tied_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    emptied           boolean NOT NULL DEFAULT true -- false: what a former namespace left is being erased
);

CREATE TABLE api_key (
    id           uuid PRIMARY KEY,
    organization text NOT NULL,
    name         text NOT NULL,
    role         text NOT NULL,
    "user"       text NOT NULL,                     -- whom its holder acts as
    hash         bytea NOT NULL,                    -- SHA-256 of the secret
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz,                       -- to within ten minutes
    CONSTRAINT api_key_role_known_check CHECK (role IN ('user', 'operator'))
);

-- Tickets: each opens one stream, for a client that cannot send a header. Only the SHA-256 of one is kept.
CREATE TABLE ticket (
    hash         bytea PRIMARY KEY,
    organization text NOT NULL,
    "user"       text NOT NULL,
    role         text NOT NULL,
    key          uuid,                              -- the API key that asked for it; revoked, it takes the ticket with it
    until        timestamptz,                       -- when the token ends that asked for it
    path         text,                              -- the one path that it opens; null: any stream
    expires_at   timestamptz NOT NULL,
    CONSTRAINT ticket_role_known_check CHECK (role IN ('user', 'operator'))
);
CREATE INDEX ticket_owner_idx ON ticket (organization, "user", expires_at);
CREATE INDEX ticket_expires_idx ON ticket (expires_at);

-- Browsers that are logged in to the web page: each stands for an API key for a while. Only the SHA-256 of its cookie is kept.
CREATE TABLE login (
    hash       bytea PRIMARY KEY,
    key        uuid NOT NULL,                       -- revoked or expired, it takes its logins with it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX login_key_idx ON login (key, created_at);
CREATE INDEX login_expires_idx ON login (expires_at);

-- What people did that others should be able to find out: erased, cancelled, read of others, made and revoked keys.
CREATE TABLE audit (
    id           uuid PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    organization text NOT NULL,
    actor        text NOT NULL,                     -- a user; or database:ROLE, for what is done in the database
    key          uuid,                              -- the API key that was shown
    action       text NOT NULL,
    subject      text NOT NULL,
    counts       jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_at_idx ON audit (at);
