"""The tables and statements of the SQLite task store. Executes nothing.

Columns and indexes are a stored format: older databases are migrated, and names stay. These need a word of explanation:
`turn` is the number of the task's last claim, rising over all claims; `held_until` and `hold_seconds` are the end and
the length of a lease or pause; `in_company` says that the last attempt ran while its worker ran other tasks
(`ran_with_others`). Tasks without an owner are counted under the owner ''.
"""

from audiocraft_api.state.sqlite import Layout

# An owner's greatest `turn` is the claim that served it last: fair queueing chooses the owner with the smallest.
CLAIM_INDEXES = """
CREATE INDEX queues ON tasks (ifnull(owner, ''), number) WHERE state = 'queued';
CREATE INDEX processing_tasks ON tasks (ifnull(owner, '')) WHERE state = 'processing';
CREATE INDEX turns ON tasks (turn);
CREATE INDEX owned_turns ON tasks (ifnull(owner, ''), turn)
"""
TABLES = f"""
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL DEFAULT 'queued',
    command TEXT NOT NULL,
    owner TEXT,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    num_frames_done INTEGER NOT NULL DEFAULT 0,
    num_frames_total INTEGER NOT NULL DEFAULT 0,
    result TEXT,
    error TEXT,
    error_code TEXT,
    idempotency_key TEXT,
    fingerprint TEXT,
    webhook_url TEXT,
    webhook_host TEXT,
    webhook_pending INTEGER NOT NULL DEFAULT 0,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    lease TEXT,
    in_company INTEGER NOT NULL DEFAULT 0,
    turn INTEGER NOT NULL DEFAULT 0,
    held_until REAL NOT NULL DEFAULT 0,
    hold_seconds REAL NOT NULL DEFAULT 0
);
CREATE INDEX queued_tasks ON tasks (number) WHERE state = 'queued';
CREATE INDEX finished_tasks ON tasks (finished) WHERE finished IS NOT NULL;
CREATE INDEX pending_webhooks ON tasks (held_until) WHERE webhook_pending;
CREATE INDEX owned_tasks ON tasks (owner, number);
CREATE UNIQUE INDEX idempotent_tasks ON tasks (ifnull(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE audio (
    task_id TEXT PRIMARY KEY,
    data BLOB NOT NULL
);
{CLAIM_INDEXES}"""
MIGRATIONS = {
    1: "ALTER TABLE tasks ADD COLUMN in_company INTEGER NOT NULL DEFAULT 0",
    2: f"ALTER TABLE tasks ADD COLUMN turn INTEGER NOT NULL DEFAULT 0; DROP INDEX unfinished_tasks; {CLAIM_INDEXES}",
}
LAYOUT = Layout("task store", 3, TABLES, MIGRATIONS)

NO_LEASE = "(held_until <= :now OR held_until > :now + hold_seconds)"

INSERT = """
INSERT INTO tasks (id, command, owner, created, updated, idempotency_key, fingerprint, webhook_url,
    webhook_host)
VALUES (:id, :command, :owner, :time, :time, :idempotency_key, :fingerprint, :webhook_url, :webhook_host) RETURNING *
"""
FIND_DUPLICATE = """
SELECT * FROM tasks
WHERE id = :id OR (ifnull(owner, '') = ifnull(:owner, '') AND idempotency_key = :idempotency_key)
"""
PAGE = """
SELECT * FROM tasks WHERE owner IS :owner AND number < ifnull(:before, 9223372036854775807)
ORDER BY number DESC LIMIT :limit
"""
POSITION = """
SELECT count(*) FROM tasks
WHERE state = 'queued' AND number <= (SELECT number FROM tasks WHERE id = ? AND state = 'queued')
"""
COUNTS = """
SELECT (SELECT count(*) FROM tasks WHERE state = 'queued'), (SELECT count(*) FROM tasks WHERE state = 'processing')
"""
NUM_UNFINISHED = """
SELECT (SELECT count(*) FROM tasks WHERE state = 'queued' AND ifnull(owner, '') = :owner)
    + (SELECT count(*) FROM tasks WHERE state = 'processing' AND ifnull(owner, '') = :owner)
"""
MEAN_RUN_SECONDS = """
SELECT avg(max(finished - started, 0)) FROM (
    SELECT started, finished FROM tasks WHERE finished IS NOT NULL AND state = 'completed'
    ORDER BY finished DESC LIMIT ?
)
"""
CLAIMABLE = f"""
SELECT id, attempts, cancel_requested, in_company AS ran_with_others FROM tasks
WHERE id = :id AND state IN ('queued', 'processing') AND {NO_LEASE}
"""
# Fair queueing. `owners` jumps from owner to owner along the index (a loose index scan), so that the cost depends on
# the number of owners and not on the length of the queue.
NEXT_CLAIMABLE = f"""
WITH RECURSIVE owners (owner) AS (
    SELECT min(ifnull(owner, '')) FROM tasks WHERE state = 'queued'
    UNION ALL
    SELECT (SELECT min(ifnull(owner, '')) FROM tasks WHERE state = 'queued' AND ifnull(owner, '') > owners.owner)
    FROM owners WHERE owners.owner IS NOT NULL
), candidates (owner, number) AS (
    SELECT owner, (
        SELECT number FROM tasks WHERE state = 'queued' AND ifnull(owner, '') = owners.owner AND {NO_LEASE}
        ORDER BY number LIMIT 1
    ) FROM owners WHERE owner IS NOT NULL
    UNION ALL
    SELECT ifnull(owner, ''), number FROM tasks WHERE state = 'processing' AND {NO_LEASE}
), leased (owner, num_leased) AS MATERIALIZED (
    SELECT ifnull(owner, ''), count(*) FROM tasks WHERE state = 'processing' AND NOT {NO_LEASE} GROUP BY 1
)
SELECT id, attempts, cancel_requested, in_company AS ran_with_others FROM tasks WHERE number = (
    SELECT number FROM candidates LEFT JOIN leased USING (owner) WHERE number IS NOT NULL
    ORDER BY
        ifnull(num_leased, 0),
        (SELECT max(turn) FROM tasks WHERE ifnull(tasks.owner, '') = candidates.owner),
        number
    LIMIT 1
)
"""
LEASE = """
UPDATE tasks SET state = 'processing', version = version + 1, attempts = attempts + 1, lease = :lease,
    in_company = :ran_with_others, held_until = :held_until, hold_seconds = :hold_seconds,
    started = :time, updated = :time, num_frames_done = 0, num_frames_total = 0,
    turn = 1 + (SELECT max(turn) FROM tasks)
WHERE id = :id RETURNING *
"""
MARK_RAN_WITH_OTHERS = "UPDATE tasks SET in_company = 1 WHERE id = ?"
LEASED_TO_WORKER = f"""
SELECT id, attempts FROM tasks
WHERE state = 'processing' AND NOT {NO_LEASE} AND substr(lease, 1, length(:worker)) = :worker
"""
HEARTBEAT = """
UPDATE tasks SET held_until = :now + hold_seconds, updated = :time,
    version = version + (num_frames_done != :done OR num_frames_total != :total),
    num_frames_done = :done, num_frames_total = :total
WHERE id = :id AND lease = :lease RETURNING cancel_requested
"""
FIND_LEASED = "SELECT cancel_requested FROM tasks WHERE id = ? AND lease = ?"
RELEASE = """
UPDATE tasks SET state = 'queued', version = version + 1, attempts = attempts - :uncounted, lease = NULL,
    held_until = :held_until, hold_seconds = :hold_seconds, updated = :time, num_frames_done = 0, num_frames_total = 0
WHERE id = :id
"""
END = """
UPDATE tasks SET state = :state, version = version + 1, result = :result, error = :error, error_code = :error_code,
    lease = NULL, held_until = 0, hold_seconds = 0, finished = :time, updated = :time,
    webhook_pending = (webhook_url IS NOT NULL)
WHERE id = :id
"""
# A queued task can be canceled at once even during a pause.
CAN_CANCEL_NOW = f"""
SELECT 1 FROM tasks WHERE id = :id AND (state = 'queued' OR (state = 'processing' AND {NO_LEASE}))
"""
REQUEST_CANCEL = """
UPDATE tasks SET cancel_requested = 1, version = version + 1, updated = :time
WHERE id = :id AND state = 'processing' AND NOT cancel_requested
"""
CLAIM_WEBHOOK = f"""
UPDATE tasks SET webhook_attempts = webhook_attempts + 1, held_until = :held_until, hold_seconds = :hold_seconds
WHERE number = (
    SELECT number FROM tasks
    WHERE webhook_pending AND {NO_LEASE} AND webhook_host NOT IN (SELECT value FROM json_each(:busy_hosts))
    ORDER BY held_until LIMIT 1
) RETURNING *
"""
PAUSE_WEBHOOK = """
UPDATE tasks SET held_until = :held_until, hold_seconds = :hold_seconds WHERE id = :id AND webhook_pending
"""
EXPIRE = """
DELETE FROM tasks WHERE number IN (SELECT number FROM tasks WHERE finished IS NOT NULL AND finished < ? LIMIT ?)
RETURNING result
"""
