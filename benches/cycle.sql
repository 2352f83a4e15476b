-- The least that a turn costs in Postgres: arm, claim, finish, as three transactions of one client. pgbench runs this
-- beside Lastword, on the same server.
\set id random(1, 9000000000000000000)
BEGIN;
INSERT INTO bare_turn (id, input) VALUES (:id, 'the message of a turn');
INSERT INTO bare_marker (turn_id) VALUES (:id);
COMMIT;
BEGIN;
UPDATE bare_marker SET worker = :client_id, claimed_at = clock_timestamp() WHERE turn_id = :id;
COMMIT;
BEGIN;
DELETE FROM bare_marker WHERE turn_id = :id;
INSERT INTO bare_terminal (turn_id, text) VALUES (:id, 'the message of a turn');
COMMIT;
